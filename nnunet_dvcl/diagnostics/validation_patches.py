"""Patches of validation cases that stay the same over the whole training, for what is measured on them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor


def draw_validation_patches(
    dataset: nnUNetBaseDataset, number: int, patch_size: Sequence[int], label_manager: LabelManager
) -> tuple[Tensor, Tensor]:
    """Patches around foreground voxels, the classes in equal shares as nnU-Net draws them; the same at each call.

    In a cascade the images have a channel more for each label, the previous stage's prediction.

    Returns:
        images [number, channels, *S] float32 and label maps [number, *S] int64 with nnU-Net's own values, -1 where a
        voxel is padding or outside.
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
    with _fixed_random_state():
        batch = next(loader)
    return batch["data"], batch["target"][:, 0].long()


@contextmanager
def _fixed_random_state() -> Iterator[None]:
    """nnU-Net's loader draws from NumPy's global generator, which goes on afterwards as if nothing had happened."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)
