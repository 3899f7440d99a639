"""Learning from pseudo-labels: one network's half of cross pseudo supervision (Eq. 2)."""

from torch import Tensor
from torch.nn import functional as F

from nnunet_dvcl.voxels.precision import at_least_float32, wide_dtype

_IGNORED = -100


def pseudo_label_cross_entropy(logits: Tensor, labels: Tensor, valid: Tensor, count: Tensor | None = None) -> Tensor:
    """CE(A, argmax B) on unlabeled images: half of DVCL, Eq. 2 (Chen et al., CVPR 2021).

    Where a voxel may lie in several regions it is BCE(A, labels), the mean over the regions.

    Args:
        logits: [B, C, *S] full-resolution output of a student on unlabeled images, a channel a class or a region.
        labels: [B, *S] int64, the class of each voxel, or [B, C, *S], 1 in the regions that it lies in.
        valid: [B, *S] bool, False where there is no pseudo-label, such as padding: such voxels do not count.
        count: [] what the sum over the valid voxels is divided by; None: the number of valid voxels.

    Returns:
        [] the mean over the valid voxels, at least float32; 0 where no voxel is valid.
    """
    count = valid.sum() if count is None else count
    supervise = _by_regions if labels.ndim == logits.ndim else _by_classes
    return supervise(logits, labels, valid) / count.where(count > 0, 1)


def _by_classes(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    log_probabilities = logits.log_softmax(1, dtype=wide_dtype(logits))
    return F.nll_loss(log_probabilities, labels.masked_fill(~valid, _IGNORED), ignore_index=_IGNORED, reduction="sum")


def _by_regions(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    logits = at_least_float32(logits)
    per_voxel = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").mean(1)
    return per_voxel.masked_fill(~valid, 0.0).sum()
