"""A fixed small set of validation voxels: where the truth is known, neighborhoods can be told right from wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunet_dvcl.voxels.draws import draw_voxels
from nnunet_dvcl.voxels.gathering import gather_rows

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images [B, channels, *S] -> logits [B, C, *S] and features [B, F, *S]."""


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
    def look(self, forward: Forward, device: torch.device) -> tuple[Tensor, Tensor]:
        """Logits [V, C] float32 and features [V, F] of all voxels, in the order of `labels`, on `device`."""
        rows = []
        for images, index in self._batches:
            logits, features = forward(images.to(device))
            index = index.to(device)
            rows.append((gather_rows(logits, index).float(), gather_rows(features, index).float()))
        logits, features = zip(*rows, strict=True)
        return torch.cat(logits), torch.cat(features)


def draw_validation_patches(
    dataset: nnUNetBaseDataset, number: int, patch_size: Sequence[int], label_manager: LabelManager
) -> tuple[Tensor, Tensor]:
    """Patches around foreground voxels, the classes in equal shares as nnU-Net draws them; the same at each call.

    Returns:
        images [number, channels, *S] float32 (in a cascade with a channel more for each label) and label maps
        [number, *S] int64 with nnU-Net's own values, -1 where a voxel is padding or outside.
    """
    cascaded = dataset.folder_with_segs_from_previous_stage is not None
    loader = nnUNetDataLoader(
        dataset,
        number,
        patch_size,
        patch_size,
        label_manager,
        oversample_foreground_percent=1.0,
        transforms=MoveSegAsOneHotToDataTransform(1, label_manager.foreground_labels) if cascaded else None,
    )
    state = np.random.get_state()  # of the global generator, from which nnU-Net's loader draws
    np.random.seed(0)
    try:
        batch = next(loader)
    finally:
        np.random.set_state(state)
    return batch["data"], batch["target"][:, 0].long()
