"""Cross pseudo supervision between the twin networks (Eq. 2)."""

from torch import Tensor
from torch.nn import functional as F

from nnunet_dvcl.voxels.precision import wide_dtype

_IGNORED = -100


def cross_pseudo_supervision(logits_a: Tensor, logits_b: Tensor, valid: Tensor, count: Tensor | None = None) -> Tensor:
    """CE(A, argmax B) + CE(B, argmax A) on unlabeled images: DVCL, Eq. 2 (Chen et al., CVPR 2021).

    The pseudo-labels carry no gradient: each term reaches one network only.

    Args:
        logits_a: [B, C, *S] full-resolution output of network A on unlabeled images.
        logits_b: [B, C, *S], the same of network B.
        valid: [B, *S] bool, False where padding was added: such voxels do not count.
        count: [] what the sums over the valid voxels are divided by; None: the number of valid voxels.

    Returns:
        [] the sum of both means over the valid voxels, at least float32; 0 where no voxel is valid.
    """
    count = valid.sum() if count is None else count
    count = count.where(count > 0, 1)
    return _pseudo_supervision(logits_a, logits_b, valid, count) + _pseudo_supervision(logits_b, logits_a, valid, count)


def _pseudo_supervision(logits: Tensor, other: Tensor, valid: Tensor, count: Tensor) -> Tensor:
    # on a CPU several times faster than argmax over a dimension that is not the last
    target = other.detach().max(1).indices.masked_fill(~valid, _IGNORED)
    total = F.nll_loss(logits.log_softmax(1, dtype=wide_dtype(logits)), target, ignore_index=_IGNORED, reduction="sum")
    return total / count
