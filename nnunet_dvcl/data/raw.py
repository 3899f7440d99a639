"""Find the scans of ``imagesTr_unlabeled`` in a raw data set."""

import os
import re
from os.path import isdir, join

from nnunet_dvcl.data.folders import IMAGES_FOLDER, num_channels
from nnunet_dvcl.data.messages import bullet_list
from nnunet_dvcl.errors import UserError


def find_unlabeled_images(raw_dataset: str, dataset_json: dict) -> dict[str, list[str]]:
    """The image files of every unlabeled scan, from their names alone.

    Args:
        raw_dataset: ``nnUNet_raw/DatasetXXX_Name``.
        dataset_json: the data set's ``dataset.json``: number of channels and file ending.

    Returns:
        Identifier -> one file a channel, in the order of the channels; empty without ``imagesTr_unlabeled``. Hidden
        files are ignored.

    Raises:
        UserError: names each file or scan that is not ``CASE_0000<ending>, CASE_0001<ending>, ...`` as in ``imagesTr``.
    """
    folder = join(raw_dataset, IMAGES_FOLDER)
    if not isdir(folder):
        return {}
    ending = dataset_json["file_ending"]
    scans, strays = _group_by_identifier(folder, ending)
    num_files = _files_per_scan(join(raw_dataset, "imagesTr"), dataset_json)
    problems = [f"{name}: expected CASE_0000{ending} (case, channel of four digits, {ending})" for name in strays]
    problems += [p for identifier in sorted(scans) for p in _scan_problems(identifier, scans[identifier], num_files)]
    if problems:
        raise UserError(
            f"{folder} must be laid out as imagesTr is: {num_files} file(s) a scan, channels "
            f"0000 to {num_files - 1:04d}, ending {ending}. Rename, complete or remove:\n{bullet_list(problems)}"
        )
    return {identifier: [join(folder, scans[identifier][c]) for c in range(num_files)] for identifier in sorted(scans)}


def _group_by_identifier(folder: str, ending: str) -> tuple[dict[str, dict[int, str]], list[str]]:
    pattern = re.compile(rf"(?P<identifier>(?!\.).+)_(?P<channel>[0-9]{{4}}){re.escape(ending)}")
    scans: dict[str, dict[int, str]] = {}
    strays = []
    for name in sorted(os.listdir(folder)):
        shown = name.encode(errors="backslashreplace").decode()
        # SimpleITK crashes on a name of bytes that are no text.
        if (match := pattern.fullmatch(name)) and shown == name:
            scans.setdefault(match["identifier"], {})[int(match["channel"])] = name
        elif not name.startswith("."):
            strays.append(shown)
    # nnU-Net's reader of 3D TIFFs takes the spacing from CASE.json beside CASE_0000.tif.
    return scans, [name for name in strays if name.removesuffix(".json") not in scans]


def _files_per_scan(images_tr: str, dataset_json: dict) -> int:
    """One file a channel, unless the labeled images carry all channels in one file (RGB pictures, 4D NIfTI)."""
    names = os.listdir(images_tr) if isdir(images_tr) else []
    first, second = (any(name.endswith(f"_{c:04d}{dataset_json['file_ending']}") for name in names) for c in (0, 1))
    return 1 if first and not second else num_channels(dataset_json)


def _scan_problems(identifier: str, files: dict[int, str], num_files: int) -> list[str]:
    missing = [f"{c:04d}" for c in range(num_files) if c not in files]
    extra = [name for channel, name in files.items() if channel >= num_files]
    problems = []
    if missing:
        problems.append(f"{identifier}: channel {', '.join(missing)} is missing")
    if extra:
        problems.append(f"{identifier}: {', '.join(extra)} is one channel too many")
    if identifier.endswith("_seg"):
        problems.append(f"{identifier}: nnU-Net keeps the ending _seg for segmentations; give the case another name")
    return problems
