"""Cross pseudo supervision between twin networks that predict regions."""

from torch import Tensor
from torch.nn import functional as F

from nnunet_dvcl.voxels.precision import at_least_float32


def cross_region_supervision(logits_a: Tensor, logits_b: Tensor, valid: Tensor, count: Tensor | None = None) -> Tensor:
    """BCE(A, B > 1/2) + BCE(B, A > 1/2) on unlabeled images: DVCL, Eq. 2 where a voxel may lie in several regions.

    The pseudo-labels carry no gradient: each term reaches one network only.

    Args:
        logits_a: [B, R, *S] full-resolution output of network A on unlabeled images, one channel a region.
        logits_b: [B, R, *S], the same of network B.
        valid: [B, *S] bool, False where padding was added: such voxels do not count.
        count: [] what the sums over the valid voxels are divided by; None: the number of valid voxels.

    Returns:
        [] the sum of both means over the regions and the valid voxels, at least float32; 0 where no voxel is valid.
    """
    count = valid.sum() if count is None else count
    count = count.where(count > 0, 1)
    return _pseudo_supervision(logits_a, logits_b, valid, count) + _pseudo_supervision(logits_b, logits_a, valid, count)


def _pseudo_supervision(logits: Tensor, other: Tensor, valid: Tensor, count: Tensor) -> Tensor:
    logits, other = at_least_float32(logits), at_least_float32(other.detach())
    target = (other.sigmoid() > 0.5).to(logits.dtype)
    per_voxel = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
    return per_voxel.masked_fill(~valid, 0.0).sum() / count
