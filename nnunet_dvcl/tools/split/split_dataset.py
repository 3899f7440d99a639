"""``nnunet_dvcl split``: the splits of a data set in nnU-Net's folders, from what its labels show."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from os.path import isdir, isfile, join

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from tqdm.contrib.concurrent import thread_map

from nnunet_dvcl.data.folders import IMAGES_FOLDER, find_dataset_name, preprocessed_root, raw_folder
from nnunet_dvcl.data.messages import bullet_list
from nnunet_dvcl.data.raw import find_unlabeled_images, read_labels
from nnunet_dvcl.data.storage import write_json
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.files import visible_files
from nnunet_dvcl.tools.model_folders import organ_names
from nnunet_dvcl.tools.split.draw import Splits, find_group, group_by, make_splits

SPLITS_FILE = "splits_final.json"
TEST_FILE = "test_cases.json"
"""A JSON list of the test cases, beside ``splits_final.json``."""

_NUM_THREADS = 4  # a segmentation in memory each; reading and comparing release Python's lock


def split_dataset(
    dataset_name_or_id: str, *, group_pattern: str | None = None, force: bool = False, **options
) -> Splits:
    """Draws the splits of a data set, preprocessed or raw alone, and writes them where nnU-Net reads them.

    `group_pattern` is for `group_by`, `options` are for `make_splits`. With `force`, files that are there are replaced;
    the old ones get ``.bak`` behind their names.

    Raises:
        UserError: no such data set, files that are there, or what `make_splits` refuses.
    """
    name = find_dataset_name(dataset_name_or_id)
    folder = join(preprocessed_root(), name)
    splits_file, test_file = files = [join(folder, SPLITS_FILE), join(folder, TEST_FILE)]
    existing = [file for file in files if isfile(file)]
    if existing and not force:
        raise UserError(
            f"There is a split already: {' and '.join(existing)}. To replace it, give --force; the old one is kept "
            "with .bak behind its name."
        )
    segmentations, dataset_json = _find_segmentations(name, folder)
    groups = group_by(segmentations, group_pattern) if group_pattern else None
    case_classes = read_case_classes(segmentations, dataset_json)
    splits = make_splits(case_classes, organ_names(dataset_json), groups=groups, **options)
    if group_pattern:
        check_scans(name, dataset_json, group_pattern, groups, splits)

    os.makedirs(folder, exist_ok=True)
    for file in existing:
        shutil.copy2(file, f"{file}.bak")
    if splits.test:
        write_json(splits.test, test_file)
    write_json(splits.folds, splits_file)
    if not splits.test and test_file in existing:
        os.remove(test_file)
    return splits


def read_case_classes(segmentations: Mapping[str, str], dataset_json: dict) -> dict[str, list[str]]:
    """Case -> the labels, or regions, that occur in its segmentation; ``UserError`` where it cannot be read.

    Not in what preprocessing keeps: a small organ may be lost in a coarser configuration.
    """
    example = next(iter(segmentations.values()))
    reader = determine_reader_writer_from_dataset_json(dataset_json, example, verbose=False)()
    values = {name: np.ravel(dataset_json["labels"][name]) for name in organ_names(dataset_json)}

    def read(file: str) -> list[str]:
        try:
            segmentation, _ = read_labels(file, reader)
        except Exception as error:
            raise UserError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
        return [name for name, labels in values.items() if any((segmentation == label).any() for label in labels)]

    files = segmentations.values()
    classes = thread_map(read, files, max_workers=_NUM_THREADS, desc="Classes of the labeled cases")
    return dict(zip(segmentations, classes, strict=True))


def _find_segmentations(name: str, folder: str) -> tuple[dict[str, str], dict]:
    """Case -> segmentation at full size, of all cases that nnU-Net has preprocessed or will; and ``dataset.json``."""
    where = join(folder, "gt_segmentations")
    if isdir(where) and isfile(join(folder, "dataset.json")):
        dataset_json = load_json(join(folder, "dataset.json"))
        ending = dataset_json["file_ending"]
        names = [file for file in visible_files(where) if file.endswith(ending)]
        segmentations = {file.removesuffix(ending): join(where, file) for file in names}
    elif isfile(join(raw_folder(name), "dataset.json")):
        where = raw_folder(name)
        dataset_json = load_json(join(where, "dataset.json"))
        cases = get_filenames_of_train_images_and_targets(where, dataset_json)
        segmentations = {case: cases[case]["label"] for case in sorted(cases)}
    else:
        raise UserError(f"No labels of {name} are found: expected the data set in {raw_folder(name)}, or {where}.")
    if not segmentations:
        raise UserError(f"{where} has no labeled case.")
    return segmentations, dataset_json


def check_scans(name: str, dataset_json: dict, pattern: str, groups: Mapping[str, str], splits: Splits) -> None:
    """Every scan of ``imagesTr_unlabeled`` trains in every fold: its patient must not validate or test."""
    scans = sorted(find_unlabeled_images(raw_folder(name), dataset_json))
    evaluated = {groups[case] for case in (*splits.test, *(case for fold in splits.folds for case in fold["val"]))}
    found = {scan: find_group(scan, pattern) for scan in scans}
    if leaks := [f"{scan}: of group {group}" for scan, group in found.items() if group in evaluated]:
        raise UserError(
            f"These scans of {IMAGES_FOLDER} train in every fold, and their groups validate or test in one. Take them "
            f"out of that folder:\n{bullet_list(leaks)}"
        )
