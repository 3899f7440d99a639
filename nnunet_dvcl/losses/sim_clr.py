"""SimCLR: two views of a voxel against all other rows of the batch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_dvcl.voxels.precision import at_least_float32, full_precision


def sim_clr(views_a: Tensor, views_b: Tensor, temperature: float = 1.0) -> Tensor:
    """NT-Xent: each of the 2Q rows has its other view as positive and the other 2Q - 2 rows as negatives.

    Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", Eq. 1; DVCL, Table 3.

    Args:
        views_a: [Q, d] features; gets a gradient.
        views_b: [Q, d] the same voxels in their other view; gets a gradient.
        temperature: above 0.

    Returns:
        [] the mean over the 2Q rows, at least float32; 0 with a graph for fewer than two voxels.
    """
    rows = F.normalize(torch.cat((at_least_float32(views_a), at_least_float32(views_b))), dim=-1)
    with full_precision(rows.device):
        logits = rows @ rows.T / temperature  # [2Q, 2Q]
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    other_view = torch.arange(len(rows), device=rows.device).roll(len(views_a))
    total = F.cross_entropy(logits.masked_fill(itself, -torch.inf), other_view, reduction="sum")
    return total / max(len(rows), 1)
