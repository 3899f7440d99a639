"""The curves of the paper's Figure 6: what neighbors and outsiders really are, where the truth is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nnunet_dvcl.losses import Neighborhoods

SHARES = (
    "outsiders_differ",  # of voxels: its K' outsiders all have another true class (the red curves)
    "neighbors_same",  # of voxels: its K neighbors all have its true class (green)
    "neighbors_same_correct",  # and are all classified rightly (blue)
    "relevant_same",  # of relevant neighbors (Eq. 13): it has the query's true class
    "ordinary_same",  # of the other neighbors
    "outlier_neighbors_same",  # of the neighbors of outliers (Eq. 15)
    "outliers_wrong",  # of outliers: it is classified wrongly
    "unreliable_wrong",  # of all N voxels, to compare with
)
"""What `neighborhood_quality` measures."""


@torch.no_grad()
def neighborhood_quality(neighborhoods: Neighborhoods, labels: Tensor, correct: Tensor) -> dict[str, Tensor]:
    """Shares of voxels whose neighbors and outsiders are what DVCL takes them for: DVCL, Figure 6.

    Args:
        neighborhoods: of N voxels among themselves; voxel i is query i and candidate i.
        labels: [N] int64, the true class of each.
        correct: [N] bool, whether the network's prediction is the true class.

    Returns:
        Name of `SHARES` -> [] float32, each a share in [0, 1]; nan where there is nothing to count.
    """
    neighbors, relevant, outsiders, outlier = neighborhoods
    same = labels[neighbors] == labels[:, None]  # [N, K]
    differ = labels[outsiders] != labels[:, None]  # [N, K']
    alone = len(labels) < 2
    true = (
        differ.all(1)[alone:],
        same.all(1)[alone:],
        (same & correct[neighbors]).all(1)[alone:],
        same[relevant],
        same[~relevant],
        same[outlier],
        ~correct[outlier],
        ~correct,
    )
    return {name: holds.float().mean() for name, holds in zip(SHARES, true, strict=True)}
