"""Write a release as a raw data set of nnU-Net: once, resumable."""

import gzip
import os
import shutil
from collections import Counter
from contextlib import suppress
from os.path import abspath, basename, dirname, getsize, isdir, isfile, join

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

from nnunet_dvcl.data.folders import IMAGES_FOLDER, raw_root
from nnunet_dvcl.data.messages import bullet_list
from nnunet_dvcl.data.raw import find_unlabeled_images
from nnunet_dvcl.data.storage import write_json
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.files import replacing
from nnunet_dvcl.progress import with_progress
from nnunet_dvcl.tools.convert import RELEASES
from nnunet_dvcl.tools.convert.layout import ENDING, Scan, find_scans
from nnunet_dvcl.tools.convert.releases import Release
from nnunet_dvcl.tools.convert.segmentation import BadScan, load_image, renumbered


def convert_dataset(
    dataset: str,
    source: str,
    dataset_id: int,
    link: bool = False,
    max_unlabeled: int | None = None,
    any_count: bool = False,
    ignore_geometry: bool = False,
) -> str:
    """Write one of the paper's data sets to ``nnUNet_raw/DatasetXXX_Name``; returns that folder.

    Scans with a segmentation become ``imagesTr`` and ``labelsTr``, scans that the release provides to train on without
    become ``imagesTr_unlabeled``, other scans without become ``imagesTs``. Images are not changed. Segmentations are
    written anew, with consecutive labels. ``dataset.json`` comes last: without it the data set is not complete, and a
    second run goes on where the first was stopped.

    Args:
        dataset: a key of ``RELEASES``.
        source: the folder into which the data set was unpacked.
        dataset_id: XXX, 1 to 999.
        link: link to the images instead of copying them.
        max_unlabeled: take only the first scans for ``imagesTr_unlabeled``, by name.
        any_count: as for `find_scans`.
        ignore_geometry: as for `renumbered`.

    Raises:
        UserError: ``nnUNet_raw`` is not set; the number belongs to another data set; the source is not as the release
            is known to be; scans that cannot be converted (all named, the others are kept).
    """
    raw, release = raw_root(), RELEASES[dataset]
    scans = find_scans(release, source, any_count)
    unlabeled = [scan for scan in scans if scan.folder == IMAGES_FOLDER]
    scans = [scan for scan in scans if scan.folder != IMAGES_FOLDER] + unlabeled[:max_unlabeled]
    folder = join(raw, f"Dataset{dataset_id:03d}_{release.name}")
    description = _description(dataset, release, sum(scan.label is not None for scan in scans))
    finished, unfinished = join(folder, "dataset.json"), join(folder, "dataset.json.unfinished")
    _check_number(dataset_id, folder)
    _check_owner(folder, [file for file in (finished, unfinished) if isfile(file)], description)
    _check_strays(folder, scans)

    os.makedirs(folder, exist_ok=True)
    if not isfile(finished) or load_json(finished) != description:
        write_json(description, unfinished)
    for name in {"labelsTr", *(scan.folder for scan in scans)}:
        os.makedirs(join(folder, name), exist_ok=True)
    problems = []
    for scan in with_progress(scans, release.name, len(scans), "scan", print):
        try:
            _convert(scan, folder, release, link, ignore_geometry)
        except BadScan as error:
            problems.append(str(error))
    if problems:
        raise UserError(
            f"{len(problems)} of {len(scans)} scans cannot be converted; the others are in {folder} and are kept. Mend "
            f"or remove these and run again:\n{bullet_list(problems)}"
        )
    find_unlabeled_images(folder, description)
    if isfile(unfinished):
        os.replace(unfinished, finished)
    counts = Counter(scan.folder for scan in scans)
    print(folder, *(f"  {counts[name]} scans in {name}" for name in ("imagesTr", IMAGES_FOLDER, "imagesTs")), sep="\n")
    return folder


def _description(dataset: str, release: Release, num_training: int) -> dict:
    """``dataset.json``"""
    return {
        "name": release.name,
        "reference": release.reference,
        "converted_by": f"nnunet_dvcl convert {dataset}",
        "channel_names": {"0": "CT"},
        "labels": release.labels,
        "numTraining": num_training,
        "file_ending": ENDING,
        # The scans of a release come in several orientations.
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
    }


def _check_number(dataset_id: int, folder: str) -> None:
    prefix, own = f"Dataset{dataset_id:03d}_", basename(folder)
    if others := [str(name) for name in find_candidate_datasets(dataset_id) if name.startswith(prefix) and name != own]:
        raise UserError(f"The number {dataset_id} belongs to {', '.join(others)}. Choose another one with -d.")


def _check_owner(folder: str, described: list[str], description: dict) -> None:
    """What is in the folder must come from the same conversion: others number the organs in another way."""
    found = [load_json(file) for file in described]
    foreign = any(other.get(key) != description[key] for other in found for key in ("converted_by", "labels"))
    if foreign or (not described and isdir(folder) and os.listdir(folder)):
        raise UserError(f"{folder} was not made by this command. Choose another number with -d, or remove the folder.")


def _check_strays(folder: str, scans: list[Scan]) -> None:
    planned = {file for scan in scans for file in (_image_file(folder, scan), _label_file(folder, scan))}
    folders = sorted({dirname(file) for file in planned})
    present = [join(path, name) for path in folders if isdir(path) for name in sorted(os.listdir(path))]
    if strays := [file for file in present if file.removesuffix(".partial") not in planned]:
        raise UserError(
            f"{folder} holds files that do not belong to what is converted now. Remove them, or choose another number "
            f"with -d:\n{bullet_list(strays)}"
        )


def _convert(scan: Scan, folder: str, release: Release, link: bool, ignore_geometry: bool) -> None:
    """The segmentation first: an image in ``imagesTr`` always has one."""
    label_file, image_file = _label_file(folder, scan), _image_file(folder, scan)
    if scan.label is None:
        load_image(scan.image)
    elif not isfile(label_file):
        segmentation = renumbered(scan.label, scan.image, release.label_of_value, ignore_geometry)
        with replacing(label_file) as partial, gzip.open(partial, "wb", compresslevel=1) as file:
            file.write(segmentation.to_bytes())
    if not isfile(image_file) or getsize(image_file) != getsize(scan.image):
        _take(scan.image, image_file, link)


def _image_file(folder: str, scan: Scan) -> str:
    return join(folder, scan.folder, f"{scan.case}_0000{ENDING}")


def _label_file(folder: str, scan: Scan) -> str:
    return join(folder, "labelsTr", f"{scan.case}{ENDING}")


def _take(source: str, target: str, link: bool) -> None:
    for old in (target, f"{target}.partial"):
        with suppress(FileNotFoundError):
            os.remove(old)
    if link:
        os.symlink(abspath(source), target)
        return
    with replacing(target) as partial:
        shutil.copyfile(source, partial)
