"""NNCLR: the nearest neighbor of a voxel against the other view of every voxel."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_dvcl.voxels.precision import at_least_float32, full_precision


def nn_clr(nearest: Tensor, views: Tensor, temperature: float = 1.0) -> Tensor:
    """The nearest neighbor of one view of a voxel stands in for that view in InfoNCE with the other view.

    Dwibedi et al., "With a Little Help from My Friends", Eq. 3 and its symmetric term: among all views the neighbor
    finds that of its own voxel, and among all neighbors the view finds its own. DVCL, Table 3.

    Args:
        nearest: [Q, d] the nearest neighbor of each voxel; detached here.
        views: [Q, d] the other view of the voxels; the only input that gets a gradient.
        temperature: above 0.

    Returns:
        [] the mean over both terms and the Q voxels, at least float32; 0 with a graph for fewer than two voxels.
    """
    nearest = F.normalize(at_least_float32(nearest.detach()), dim=-1)
    views = F.normalize(at_least_float32(views), dim=-1)
    with full_precision(views.device):
        logits = nearest @ views.T / temperature  # [Q, Q]
    own = torch.arange(len(logits), device=logits.device)
    total = F.cross_entropy(logits, own, reduction="sum") + F.cross_entropy(logits.T, own, reduction="sum")
    return total / max(2 * len(logits), 1)
