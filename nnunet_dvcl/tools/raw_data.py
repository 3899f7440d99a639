"""A raw data set: its name, its labeled cases, and folders of links to images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_dvcl.errors import UserError


def find_dataset(name_or_id: str) -> str:
    """DatasetXXX_Name of a data set that is named as for nnU-Net's ``-d``.

    Raises:
        UserError: one of nnU-Net's folders is not set, or there is no such data set.
    """
    for variable in (nnUNet_raw, nnUNet_preprocessed, nnUNet_results):
        if not variable.is_set():
            raise UserError(f"The environment variable {variable.env_var_name} is not set: this command needs it.")
    try:
        name = maybe_convert_to_dataset_name(name_or_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"No data set {name_or_id}: {error}") from error
    if not Path(nnUNet_raw, name, "dataset.json").is_file():
        raise UserError(f"{Path(nnUNet_raw, name, 'dataset.json')} does not exist: the data set is missing.")
    return name


def labeled_cases(raw: Path) -> dict[str, dict]:
    """Case -> ``images`` (one file a channel) and ``label``, as nnU-Net finds them."""
    dataset_json = load_json(str(raw / "dataset.json"))
    if "dataset" in dataset_json:
        return get_filenames_of_train_images_and_targets(str(raw), dataset_json)
    # nnU-Net would start a pool of processes to list a folder
    ending, images = dataset_json["file_ending"], {}
    for file in sorted((raw / "imagesTr").glob(f"*{ending}")):
        images.setdefault(file.name[: -len(ending) - len("_0000")], []).append(str(file))
    return {
        case: {"images": files, "label": str(raw / "labelsTr" / f"{case}{ending}")} for case, files in images.items()
    }


def link_images(folder: Path, images: Mapping[str, list[str]], ending: str) -> None:
    """Makes a folder as ``nnUNetv2_predict -i`` takes it, with links to the images of these cases and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {}
    for case, files in images.items():
        for channel, file in enumerate(files):
            wanted[f"{case}_{channel:04d}{ending}"] = os.path.realpath(file)
        sidecar = f"{files[0][: -len(ending) - len('_0000')]}.json"  # the spacing of a 3D TIFF
        if os.path.isfile(sidecar):
            wanted[f"{case}.json"] = os.path.realpath(sidecar)
    for stray in set(os.listdir(folder)) - wanted.keys():
        (folder / stray).unlink()
    for name, target in wanted.items():
        link = folder / name
        if not link.is_symlink() or os.readlink(link) != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)
