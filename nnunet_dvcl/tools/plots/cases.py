"""Preprocessed cases with their truth, in patches that show each voxel once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunet_dvcl.cascade.previous_stage import PreviousStage, with_previous_stage
from nnunet_dvcl.data.folders import DatasetFolders
from nnunet_dvcl.data.messages import bullet_list
from nnunet_dvcl.data.splits import validation_cases
from nnunet_dvcl.data.storage import complete_cases
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.options import closest

_NUM_CASES = 4


class Case(NamedTuple):
    """A preprocessed case."""

    data: np.ndarray  # [channels, Z, Y, X], the input of the network
    truth: np.ndarray  # [1, Z, Y, X], -1 outside the image


def choose_cases(folders: DatasetFolders, fold: int | str, wanted: Sequence[str]) -> list[str]:
    """The wanted cases, or the first validation cases of the fold; ``UserError`` where one is unknown or unlabeled."""
    labeled = complete_cases(folders.labeled, folders.dataset_class())
    cases = list(wanted) or validation_cases(folders.splits_file, fold, labeled)[:_NUM_CASES]
    scans = complete_cases(folders.unlabeled, folders.dataset_class())
    if problems := [_problem(case, labeled, scans) for case in cases if case not in labeled]:
        raise UserError(f"These cases of {folders.labeled} cannot be shown:\n{bullet_list(problems)}")
    return cases


def _problem(case: str, labeled: set[str], scans: set[str]) -> str:
    if case in scans:
        return f"{case}: has no truth, as it is a scan of imagesTr_unlabeled; choose a labeled case"
    like = closest(case, sorted(labeled), 3, cutoff=0.4) or sorted(labeled)[:3]
    return f"{case}: is not there; did you mean {', '.join(like)}?"


def load_cases(
    folders: DatasetFolders, names: Sequence[str], previous_stage: PreviousStage | None, label_manager: LabelManager
) -> dict[str, Case]:
    """Preprocessed cases by their names; ``UserError`` where one has no prediction of a cascade's previous stage."""
    if previous_stage is not None:
        previous_stage.check_labeled(names, folders.splits_file)
    dataset = folders.dataset_class()(folders.labeled, list(names), previous_stage and previous_stage.labeled)
    cases = {}
    for name in names:
        data, truth, segmentation, _ = dataset.load_case(name)
        if previous_stage is not None:
            data = with_previous_stage(data[:], segmentation[:], label_manager)
        cases[name] = Case(data, truth)
    return cases


def windows(shape: Sequence[int], patch_size: Sequence[int], batch_size: int) -> list[tuple[slice, ...]]:
    """Where the tiles of a case [Z, Y, X] lie in its padded images [N, *S], N = 1 in 3d, N = Z slices in 2d."""
    number, *spatial = shape if len(patch_size) == 2 else (1, *shape)
    padded = [max(size, patch) for size, patch in zip(spatial, patch_size, strict=True)]
    corners = itertools.product(*compute_steps_for_sliding_window(padded, patch_size, 1.0))
    places = [[slice(c, c + patch) for c, patch in zip(corner, patch_size, strict=True)] for corner in corners]
    batches = [slice(first, first + batch_size) for first in range(0, number, batch_size)]
    return [(batch, *place) for place in places for batch in batches]


def tiles(case: Case, patch_size: Sequence[int], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Patches that together show each voxel of a case once: one patch at a time in 3d, a few slices in 2d.

    Yields:
        image [B, channels, *P] float32, padded where the case is smaller; truth [B, *P] int64, nnU-Net's label map, -1
        outside the image and where an earlier patch has shown the voxel.
    """
    image, truth = (torch.from_numpy(np.array(array[:])) for array in case)
    image, truth = (image.transpose(0, 1), truth[0]) if len(patch_size) == 2 else (image[None], truth)
    image = pad_nd_image(image, patch_size)
    truth = pad_nd_image(truth, patch_size, "constant", {"value": -1}).long()
    for here in windows(case.truth.shape[1:], patch_size, batch_size):
        batch, *place = here
        yield image[(batch, slice(None), *place)], truth[here].clone()
        truth[here] = -1
