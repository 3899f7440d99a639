"""The mean over some voxels, on one rank or as a rank's part of the mean over all."""

from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor, count: Tensor | None = None) -> Tensor:
    """The mean of the values whose mask is True; what the others are does not matter, not even where it is nan.

    Args:
        values: any shape.
        mask: bool, of the same shape.
        count: [] what the sum is divided by; None: the number of True.

    Returns:
        []; 0 with a graph where the mask is False everywhere.
    """
    count = mask.sum() if count is None else count
    return values.masked_fill(~mask, 0.0).sum() / count.where(count > 0, 1)
