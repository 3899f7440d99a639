"""Which voxels a network is sure of: the entropy split (ESM)."""

import torch
from torch import Tensor

from nnunet_dvcl import distributed


@torch.no_grad()
def split_by_entropy(
    entropy: Tensor,
    alpha: float = 0.5,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy-based selection (ESM): τ = mean(e) + α·std(e) over the valid voxels of one network, DVCL, Eq. 5-6.

    O(N), no sort. A tie e = τ is reliable. On several ranks τ is that of the whole batch.

    Args:
        entropy: [B, *S] in nats.
        alpha: α.
        valid: [B, *S] bool, False where padding was added: such voxels are in neither mask and not in τ.

    Returns:
        reliable and unreliable, [B, *S] bool each, and the threshold τ, [] (0 where no voxel is valid).
    """
    entropy = entropy.to(torch.promote_types(entropy.dtype, torch.float32))
    valid = torch.ones_like(entropy, dtype=torch.bool) if valid is None else valid
    # float64: a float32 sum of equal entropies can round τ below them, and the tie would be lost
    own = entropy.masked_fill(~valid, 0.0).sum(dtype=torch.float64)
    total, count = distributed.total(torch.stack((own, valid.sum().double())))
    count = count.clamp(min=1)
    mean = total / count
    variance = distributed.total((entropy - mean).square().masked_fill(~valid, 0.0).sum(dtype=torch.float64)) / count
    threshold = (mean + alpha * variance.sqrt()).to(entropy.dtype)
    reliable = entropy <= threshold
    return reliable & valid, ~reliable & valid, threshold
