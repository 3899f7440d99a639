"""A fixed small set of validation voxels: where the truth is known, neighborhoods can be told right from wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_dvcl.voxels.gathering import gather_rows
from nnunet_dvcl.voxels.sampling import draw_voxels

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images [B, channels, *S] -> logits [B, C, *S] and features [B, F, *S]."""


class VoxelRows(NamedTuple):
    """What one network makes of V voxels."""

    logits: Tensor  # [V, C] float32
    features: Tensor  # [V, F]


class ValidationVoxels:
    """Voxels that are drawn once and looked at again and again: what changes is the network.

    Args:
        images: [P, channels, *S] patches.
        labels: [P, *S] int64, the truth; -1 (not known, padding or outside) is never drawn.
        number: the voxels to draw, over all patches.
        batch_size: the patches of one forward.
    """

    def __init__(self, images: Tensor, labels: Tensor, number: int, batch_size: int):
        index, drawn = draw_voxels(labels >= 0, number, torch.Generator().manual_seed(0))
        self.index = index[drawn].sort().values  # [V], ascending
        self.labels = labels.flatten()[self.index]  # [V]
        batches = images.split(batch_size)
        voxels_of_a_batch = batch_size * labels[0].numel()
        counts = torch.bincount(self.index // voxels_of_a_batch, minlength=len(batches)).tolist()
        self._batches = list(zip(batches, (self.index % voxels_of_a_batch).split(counts), strict=True))

    @torch.no_grad()
    def look(self, forward: Forward, device: torch.device) -> VoxelRows:
        """The rows of all voxels, in the order of `labels`, on `device`."""
        rows = []
        for images, index in self._batches:
            logits, features = forward(images.to(device))
            index = index.to(device)
            rows.append((gather_rows(logits, index).float(), gather_rows(features, index).float()))
        return VoxelRows(*(torch.cat(part) for part in zip(*rows, strict=True)))
