"""The scans of ``imagesTr_unlabeled`` in a raw data set: found by their names, and looked at file by file."""

import re
from collections.abc import Iterator, Sequence
from os.path import isdir, join

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_dvcl.data.folders import IMAGES_FOLDER, num_channels
from nnunet_dvcl.data.messages import bullet_list
from nnunet_dvcl.data.whole_files import check_whole
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.files import visible_files

CONSTANT = "every voxel has the same value"


def find_unlabeled_images(raw_dataset: str, dataset_json: dict) -> dict[str, list[str]]:
    """Identifier -> one file a channel, in the order of the channels; empty without ``imagesTr_unlabeled``.

    Hidden files are ignored.

    Raises:
        UserError: names each file or scan that is not ``CASE_0000<ending>, CASE_0001<ending>, ...`` as in ``imagesTr``.
    """
    folder = join(raw_dataset, IMAGES_FOLDER)
    if not isdir(folder):
        return {}
    ending = dataset_json["file_ending"]
    scans, strays = _group_by_identifier(folder, ending)
    num_files = _files_per_scan(raw_dataset, dataset_json, scans)
    problems = [f"{name}: expected CASE_0000{ending} (case, channel of four digits, {ending})" for name in strays]
    problems += [problem for scan in sorted(scans) for problem in _scan_problems(scan, scans[scan], num_files)]
    if problems:
        raise UserError(
            f"{folder} must be laid out as imagesTr is: {_layout(num_files)}, ending {ending}. Rename, complete or "
            f"remove:\n{bullet_list(problems)}"
        )
    return {scan: [join(folder, scans[scan][c]) for c in range(num_files)] for scan in sorted(scans)}


def _layout(num_files: int) -> str:
    if num_files == 1:
        return "one file a scan, channel 0000"
    return f"{num_files} files a scan, channels 0000 to {num_files - 1:04d}"


def check_images(image_files: Sequence[str], reader: BaseReaderWriter, dataset_json: dict) -> list[str]:
    """Read each file of one scan by itself, so that a problem names its file; returns what is strange, but usable.

    Raises:
        UserError: unreadable, cut off, no voxels, NaN or infinite, only zeros, or channels that do not fit together or
            are not as many as the data set's.
    """
    images, all_finite = zip(*(_read(file, reader) for file in image_files), strict=True)
    all_files, shapes = ", ".join(image_files), [image.shape[1:] for image in images]
    if len(set(shapes)) > 1:
        raise UserError(f"{all_files}: the channels differ in shape: {', '.join(map(str, shapes))}")
    if not any(image.any() for image in images):
        raise UserError(f"{all_files}: the image is empty, every voxel is 0")
    if (channels := sum(map(len, images))) != (expected := num_channels(dataset_json)):
        size = " x ".join(map(str, shapes[0]))
        raise UserError(
            f"{all_files}: read as {channels} channels of {size} voxels, but dataset.json names {expected}. "
            "Is it an image of vectors or colors, or a series of images?"
        )
    strange = []
    if not all(all_finite):
        strange.append(f"NaN or infinite voxels, which {type(reader).__name__} reads as 0")
    if any(np.ptp(channel) == 0 for image in images for channel in image):
        strange.append(CONSTANT)
    return strange


def read_labels(file: str, reader: BaseReaderWriter) -> tuple[np.ndarray, dict]:
    """A segmentation as nnU-Net trains on it, [1, *S] int64: fractions are cut off (1.0000001 is 1); and properties."""
    segmentation, properties = reader.read_seg(file)
    return segmentation.astype(np.int64), properties


def _read(file: str, reader: BaseReaderWriter) -> tuple[np.ndarray, bool]:
    """[channels, *S] of finite voxels; and whether those of the file are."""
    try:
        finite = check_whole(file)
    except Exception as error:
        raise UserError(f"{file}: cannot be read to its end ({_reason(error)}); was it copied in part?") from error
    try:
        image = reader.read_images([file])[0]
    except Exception as error:
        raise UserError(f"{file}: cannot be read ({_reason(error)})") from error
    if image.size == 0:
        raise UserError(f"{file}: the image has no voxels, its shape is {image.shape[1:]}")
    if not np.isfinite(image).all():
        raise UserError(f"{file}: the image has NaN or infinite voxels")
    return image, finite


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def _group_by_identifier(folder: str, ending: str) -> tuple[dict[str, dict[int, str]], list[str]]:
    pattern = re.compile(rf"(?P<identifier>.+)_(?P<channel>[0-9]{{4}}){re.escape(ending)}")
    scans: dict[str, dict[int, str]] = {}
    strays = []
    for name in visible_files(folder):
        shown = name.encode(errors="backslashreplace").decode()
        # SimpleITK crashes on a name of bytes that are no text.
        if (match := pattern.fullmatch(name)) and shown == name:
            scans.setdefault(match["identifier"], {})[int(match["channel"])] = name
        else:
            strays.append(shown)
    # nnU-Net's reader of 3D TIFFs takes the spacing from CASE.json beside CASE_0000.tif.
    return scans, [name for name in strays if name.removesuffix(".json") not in scans]


def _files_per_scan(raw_dataset: str, dataset_json: dict, scans: dict[str, dict[int, str]]) -> int:
    """One file a channel, unless the images carry all channels in one file (RGB pictures, 4D NIfTI).

    The labeled images tell, those that dataset.json lists or those of ``imagesTr``; without any the scans themselves.
    """
    if listed := dataset_json.get("dataset"):
        return len(next(iter(listed.values()))["images"])
    labeled, _ = _group_by_identifier(join(raw_dataset, "imagesTr"), dataset_json["file_ending"])
    channels = {channel for files in (labeled or scans).values() for channel in files}
    return 1 if channels == {0} else num_channels(dataset_json)


def _scan_problems(identifier: str, files: dict[int, str], num_files: int) -> Iterator[str]:
    if missing := [f"{c:04d}" for c in range(num_files) if c not in files]:
        yield f"{identifier}: channel {', '.join(missing)} is missing"
    if extra := [name for channel, name in files.items() if channel >= num_files]:
        yield f"{identifier}: {', '.join(extra)} is one channel too many"
    if identifier.endswith("_seg"):
        yield f"{identifier}: nnU-Net keeps the ending _seg for segmentations; give the case another name"
