"""Unlabeled cases from both sources, without anything that a label decides."""

from collections.abc import Iterable
from os.path import getmtime, join

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset


class _LazyArray:
    """A stored array (memory map, Blosc2) of which only what is indexed is read, and only ``_show`` of that is seen."""

    def __init__(self, stored) -> None:
        self._stored = stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self._stored.shape

    @property
    def dtype(self) -> np.dtype:
        return self._stored.dtype

    def __getitem__(self, key) -> np.ndarray:
        return self._show(self._stored[key])


class Image(_LazyArray):
    """What is read can be written to: nnU-Net's transforms work in place, on a read-only memory map they crash."""

    @staticmethod
    def _show(values: np.ndarray) -> np.ndarray:
        return np.require(values, requirements="W")


class ImageMask(_LazyArray):
    """nnU-Net's stored segmentation, of which only its mask of the image can be seen: 0 inside, -1 outside."""

    @staticmethod
    def _show(values: np.ndarray) -> np.ndarray:
        return np.minimum(values, 0)


class UnlabeledDataset:
    """What nnU-Net's loader needs of a data set, over several of nnU-Net's data sets.

    A withheld case is stored with its segmentation. Labels are clamped to "inside" and class locations are dropped,
    here and nowhere later, so that no caller can see them. (nnU-Net marks a voxel as outside where the image is zero
    *and* has no label; that a zero background voxel has some label is thus the one thing that still shows, as inside.)
    """

    def __init__(self, sources: Iterable[nnUNetBaseDataset]) -> None:
        self._source = {identifier: source for source in sources for identifier in source.identifiers}
        self.identifiers = sorted(self._source)

    def __len__(self) -> int:
        return len(self.identifiers)

    def load_case(self, identifier: str) -> tuple[Image, ImageMask, np.ndarray | None, dict]:
        """As nnU-Net's dataset classes: data, mask in the place of the segmentation, previous stage, properties.

        Data [channels, *S] float32 and mask [1, *S] are lazy. The segmentation that the previous stage of a cascade has
        predicted, [*S], is None without a cascade. ``properties["class_locations"]`` is None.
        """
        data, segmentation, previous_stage, properties = self._source[identifier].load_case(identifier)
        return Image(data), ImageMask(segmentation), previous_stage, {**properties, "class_locations": None}

    def written_at(self, identifier: str) -> float:
        """When the case was preprocessed, as the file system has it [s]."""
        return getmtime(join(self._source[identifier].source_folder, f"{identifier}.pkl"))
