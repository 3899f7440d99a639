"""Signed distances beside the segmentation: how wrong they are, and whether the two tell the same."""

from torch import Tensor

from nnunet_dvcl.losses.masked_mean import masked_mean


def signed_distance_error(predicted: Tensor, truth: Tensor, count: Tensor | None = None) -> Tensor:
    """(z - T)², the regression of SASSNet (Li et al., MICCAI 2020) and DTC (Luo et al., AAAI 2021).

    Args:
        predicted: z, [B, F, *S] in [-1, 1], a channel a label.
        truth: T, [B, F, *S]; nan where it is not known.
        count: [] what the sum is divided by; None: the number of known values.

    Returns:
        [] the mean over all known values; 0 where there is none.
    """
    known = truth.isfinite()
    return masked_mean((predicted - truth.where(known, 0.0)).square(), known, count)


def dual_task_consistency(
    distances: Tensor, probabilities: Tensor, mask: Tensor, steepness: float, count: Tensor | None = None
) -> Tensor:
    """(p - 1/(1 + exp(k·z)))²: a segmentation and the one that distances draw, DTC (Luo et al., AAAI 2021, Eq. 2).

    Args:
        distances: z, [B, F, *S] float32, negative inside, a channel a label beside background.
        probabilities: p, [B, F, *S], of the same labels.
        mask: [B, *S] bool, the voxels that are compared.
        steepness: k; the larger, the sharper is the surface that is drawn.
        count: [] what the sum is divided by; None: the number of these voxels.

    Returns:
        [] the sum over labels, the mean over these voxels; 0 where there is none. The gradient reaches both.
    """
    drawn = (-steepness * distances).sigmoid()
    return masked_mean((probabilities - drawn).square().sum(1), mask, count)
