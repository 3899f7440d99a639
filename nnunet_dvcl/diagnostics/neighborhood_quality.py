"""The curves of the paper's Figure 6: what neighbors and outsiders really are, where the truth is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nnunet_dvcl.losses import Neighborhoods

SHARES = (
    "outsiders_differ",
    "neighbors_same",
    "neighbors_same_correct",
    "relevant_same",
    "ordinary_same",
    "outlier_neighbors_same",
    "outliers_wrong",
    "unreliable_wrong",
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
        Name -> [] float32, each a share in [0, 1]; nan where there is nothing to count.

        - ``outsiders_differ``: voxels whose K' outsiders all have another true class (the red curves),
        - ``neighbors_same``: voxels whose K neighbors all have the voxel's true class (green),
        - ``neighbors_same_correct``: and are all classified rightly (blue),
        - ``relevant_same``, ``ordinary_same``: relevant (Eq. 13) and ordinary neighbors with the query's true class,
        - ``outlier_neighbors_same``: the same for the neighbors of outliers (Eq. 15),
        - ``outliers_wrong``: outliers that are classified wrongly,
        - ``unreliable_wrong``: all N voxels that are classified wrongly, to compare with.
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
