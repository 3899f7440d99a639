"""Cross pseudo supervision between the twin networks (Eq. 2)."""

from torch import Tensor
from torch.nn import functional as F

from nnunet_dvcl.voxels.precision import at_least_float32, wide_dtype

_IGNORED = -100


def cross_pseudo_supervision(
    logits_a: Tensor, logits_b: Tensor, valid: Tensor, count: Tensor | None = None, regions: bool = False
) -> Tensor:
    """CE(A, argmax B) + CE(B, argmax A) on unlabeled images: DVCL, Eq. 2 (Chen et al., CVPR 2021).

    Where a voxel may lie in several regions it is BCE(A, B > 1/2) + BCE(B, A > 1/2), a mean over the regions. The
    pseudo-labels carry no gradient: each term reaches one network only.

    Args:
        logits_a: [B, C, *S] full-resolution output of network A on unlabeled images, a channel a class or a region.
        logits_b: [B, C, *S], the same of network B.
        valid: [B, *S] bool, False where padding was added: such voxels do not count.
        count: [] what the sums over the valid voxels are divided by; None: the number of valid voxels.
        regions: whether the channels go through a sigmoid each, and not through a softmax.

    Returns:
        [] the sum of both means over the valid voxels, at least float32; 0 where no voxel is valid.
    """
    count = valid.sum() if count is None else count
    count = count.where(count > 0, 1)
    supervise = _by_regions if regions else _by_classes
    return (supervise(logits_a, logits_b.detach(), valid) + supervise(logits_b, logits_a.detach(), valid)) / count


def _by_classes(logits: Tensor, other: Tensor, valid: Tensor) -> Tensor:
    # on a CPU several times faster than argmax over a dimension that is not the last
    target = other.max(1).indices.masked_fill(~valid, _IGNORED)
    log_probabilities = logits.log_softmax(1, dtype=wide_dtype(logits))
    return F.nll_loss(log_probabilities, target, ignore_index=_IGNORED, reduction="sum")


def _by_regions(logits: Tensor, other: Tensor, valid: Tensor) -> Tensor:
    logits = at_least_float32(logits)
    target = (at_least_float32(other).sigmoid() > 0.5).to(logits.dtype)
    per_voxel = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
    return per_voxel.masked_fill(~valid, 0.0).sum()
