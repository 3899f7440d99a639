"""Balanced contrast: every class has one center and its own temperature, however rare it is."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_dvcl.voxels.precision import at_least_float32, full_precision


@torch.no_grad()
def reliable_negatives(probabilities: Tensor, truth: Tensor, share: float = 0.3) -> Tensor:
    """Of which classes a voxel is surely a negative: BaCon (Feng et al., AAAI 2024).

    A labeled voxel of all but its own; an unlabeled one of all but its most likely ones, 3 of 10 classes as published.
    At least one class is likely, and at least one is not.

    Args:
        probabilities: [N, C], C at least 2.
        truth: [N] int64; -1: an unlabeled voxel.
        share: of the classes that could be the one of an unlabeled voxel.

    Returns:
        [N, C] bool.
    """
    num_classes = probabilities.shape[1]
    number = max(1, min(round(share * num_classes), num_classes - 1))
    unlikely = probabilities.argsort(1, descending=True).argsort(1) >= number
    another = torch.arange(num_classes, device=truth.device) != truth[:, None]
    return another.where(truth[:, None] >= 0, unlikely)


def class_temperatures(frequencies: Tensor, progress: float, temperature: float = 0.1) -> Tensor:
    """τ_c = τ - (1 - t)² · 0.0005 · √(n_c / max n), a lower one for frequent classes at first: BaCon.

    Args:
        frequencies: [C] n, of labeled voxels of each class, as numbers or shares.
        progress: t, in [0, 1].
        temperature: τ, above 0.0005.

    Returns:
        [C] float32.
    """
    highest = frequencies.float().max()
    relative = frequencies.float() / highest.where(highest > 0, 1)
    return temperature - (1 - progress) ** 2 * 0.0005 * relative.sqrt()


def balanced_contrast(
    rows: Tensor,
    classes: Tensor,
    anchor_mask: Tensor,
    centers: Tensor,
    center_mask: Tensor,
    negative_of: Tensor,
    temperatures: Tensor,
    temperature: float = 0.1,
    num_negatives: int = 64,
) -> Tensor:
    """Pulls anchors to the center of their class and away from what is surely of another: BaCon.

    -log e^{s_+} / (e^{s_+} + N · the mean of e^{s_-}), with s_+ = cos(r, center_c) / τ_c and s_- = cos(r, r_j) / τ over
    the negatives j of class c: as many count, however many there are.

    Args:
        rows: [N, d] features; the only input that gets a gradient, as an anchor alone.
        classes: [N] int64 in [0, C) where `anchor_mask` is True.
        anchor_mask: [N] bool.
        centers: [C, d]; detached here.
        center_mask: [C] bool, False: the class has no center yet.
        negative_of: [N, C] bool, the classes that a row is a negative of.
        temperatures: [C] τ_c.
        temperature: τ.
        num_negatives: N.

    Returns:
        [] the mean over the anchors whose class has a center and a negative, at least float32; 0 with a graph if none.
    """
    rows = F.normalize(at_least_float32(rows), dim=-1)
    centers = F.normalize(centers.detach().to(rows.dtype), dim=-1)
    classes = classes.clamp(min=0)
    with full_precision(rows.device):
        positive = (rows * centers[classes]).sum(1) / temperatures.to(rows.dtype)[classes]
        similarity = rows @ rows.detach().T / temperature  # [N, N]
    negative = negative_of.T[classes]  # [N, N], whether j is a negative of the class of i
    number = negative.sum(1)
    active = anchor_mask & center_mask[classes] & (number > 0)
    # without a negative all are compared: the logarithm of nothing has no gradient
    similarity = similarity.masked_fill(~negative & (number > 0)[:, None], -torch.inf)
    mean = similarity.logsumexp(1) - number.clamp(min=1).to(rows.dtype).log()
    loss = F.softplus(mean + torch.log(rows.new_full((), num_negatives)) - positive)
    return loss.masked_fill(~active, 0.0).sum() / active.sum().clamp(min=1)
