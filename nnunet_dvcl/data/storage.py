"""Preprocessed cases on disk: written whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os.path import join

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import (
    comp_blosc2_params,
    nnUNetBaseDataset,
    nnUNetDatasetBlosc2,
    nnUNetDatasetNumpy,
)

from nnunet_dvcl.files import replacing, visible_files, writing

HIDDEN_FOLDER = ".nnunet_dvcl"
"""Holds all that is not a case: nnU-Net looks at the plain files of the folder alone."""

_SUFFIXES = {nnUNetDatasetBlosc2: (".b2nd", "_seg.b2nd", ".pkl"), nnUNetDatasetNumpy: (".npz", ".pkl")}


def complete_cases(folder: str, dataset_class: type[nnUNetBaseDataset]) -> set[str]:
    """Identifiers of the cases all of whose files are in ``folder``; empty when there is no folder."""
    names = set(visible_files(folder))
    identifiers = {name.removesuffix(".pkl") for name in names if name.endswith(".pkl")}
    return {i for i in identifiers if names.issuperset(i + suffix for suffix in _SUFFIXES[dataset_class])}


def save_case(
    folder: str,
    identifier: str,
    data: np.ndarray,
    image_mask: np.ndarray,
    properties: dict,
    dataset_class: type[nnUNetBaseDataset],
    patch_size: tuple[int, ...],
) -> None:
    """Save a case so that a kill at any moment leaves it complete or not there.

    Args:
        folder: of the preprocessed cases, with its hidden folder.
        data: [channels, *S] float32.
        image_mask: [1, *S] int8, 0 inside the image and -1 outside.
        patch_size: the plan's; Blosc2 cuts its chunks to it.

    Raises:
        UserError: the folder cannot be written to.
    """
    with writing(join(folder, identifier)), whole_files(folder) as temporary:
        target = join(temporary, identifier)
        if dataset_class is nnUNetDatasetBlosc2:
            blocks, chunks = comp_blosc2_params(data.shape, patch_size, data.itemsize)
            blocks_seg, chunks_seg = comp_blosc2_params(image_mask.shape, patch_size, image_mask.itemsize)
            layout = {"chunks": chunks, "blocks": blocks, "chunks_seg": chunks_seg, "blocks_seg": blocks_seg}
            dataset_class.save_case(data, image_mask, properties, target, **layout)
        else:
            dataset_class.save_case(data, image_mask, properties, target)
            # Unpacked now, inside the same commit: nnU-Net unpacks the labeled folder only.
            np.save(f"{target}.npy", data)
            np.save(f"{target}_seg.npy", image_mask)


@contextmanager
def whole_files(folder: str) -> Iterator[str]:
    """A temporary folder in the hidden folder, whose files are moved into ``folder`` when the block ends well."""
    with tempfile.TemporaryDirectory(dir=join(folder, HIDDEN_FOLDER), prefix="case_") as temporary:
        yield temporary
        # The pickle moves last: it marks the case as whole.
        for name in sorted(os.listdir(temporary), key=lambda name: name.endswith(".pkl")):
            with open(join(temporary, name), "rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(handle.name, join(folder, name))


def remove_leftovers(folder: str) -> None:
    """What a killed run left behind: temporary folders of cases, never a case."""
    for entry in os.scandir(join(folder, HIDDEN_FOLDER)):
        if entry.is_dir():
            shutil.rmtree(entry.path)


def write_json(content: dict, file: str) -> None:
    """Write ``content`` whole or not at all; one writer at a time. ``UserError`` where it cannot be written."""
    with replacing(file) as partial, open(partial, "w", encoding="utf-8") as handle:
        json.dump(content, handle, indent=4)
