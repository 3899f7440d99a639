"""A data set in nnU-Net's folders: its cases, its plans, and folders of links to images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_dvcl.data.folders import find_dataset_name
from nnunet_dvcl.data.raw import find_unlabeled_images
from nnunet_dvcl.data.storage import complete_cases
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.files import visible_files
from nnunet_dvcl.tools.split.split_dataset import SPLITS_FILE


@dataclass(frozen=True)
class Dataset:
    """Where nnU-Net keeps a data set, and what it holds."""

    name: str  # DatasetXXX_Name

    @classmethod
    def find(cls, name_or_id: str) -> Dataset:
        """As nnU-Net's ``-d`` names it; ``UserError`` where it is not, or one of nnU-Net's folders is not set."""
        for variable in (nnUNet_raw, nnUNet_preprocessed, nnUNet_results):
            if not variable.is_set():
                raise UserError(f"The environment variable {variable.env_var_name} is not set: this command needs it.")
        dataset = cls(find_dataset_name(name_or_id))
        if not (dataset.raw / "dataset.json").is_file():
            raise UserError(f"{dataset.raw / 'dataset.json'} does not exist: the data set is missing.")
        return dataset

    def __str__(self) -> str:
        return self.name

    @property
    def id(self) -> int:
        return convert_dataset_name_to_id(self.name)

    @property
    def raw(self) -> Path:
        return Path(nnUNet_raw, self.name).absolute()

    @property
    def preprocessed(self) -> Path:
        return Path(nnUNet_preprocessed, self.name)

    @property
    def splits_file(self) -> Path:
        return self.preprocessed / SPLITS_FILE

    def plans_file(self, plans: str) -> Path:
        return self.preprocessed / f"{plans}.json"

    def plans(self, plans: str) -> PlansManager:
        """As the file is now."""
        return PlansManager(load_json(str(self.plans_file(plans))))

    @cached_property
    def json(self) -> dict:
        """``dataset.json``"""
        return load_json(str(self.raw / "dataset.json"))

    @cached_property
    def labeled_cases(self) -> dict[str, dict]:
        """Case -> ``images`` (one file a channel) and ``label``, as nnU-Net finds them."""
        if "dataset" in self.json:
            return get_filenames_of_train_images_and_targets(str(self.raw))
        # here nnU-Net would fork a pool of processes, which hang when this process has threads
        ending, images = self.json["file_ending"], {}
        for name in visible_files(self.raw / "imagesTr"):
            if name.endswith(ending):
                file = str(self.raw / "imagesTr" / name)
                images.setdefault(name[: -len(ending) - len("_0000")], []).append(file)
        labels = self.raw / "labelsTr"
        return {case: {"images": files, "label": str(labels / f"{case}{ending}")} for case, files in images.items()}

    def preprocessed_cases(self, plans: PlansManager, configuration: str) -> set[str]:
        """Those all of whose files are there."""
        folder = str(self.preprocessed / plans.get_configuration(configuration).data_identifier)
        try:
            return complete_cases(folder, infer_dataset_class(folder))
        except (OSError, AssertionError, KeyError):  # not there, or nothing in it
            return set()

    @cached_property
    def unlabeled_scans(self) -> dict[str, list[str]]:
        """Those of ``imagesTr_unlabeled``: scan -> one file a channel."""
        return find_unlabeled_images(str(self.raw), self.json)


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
    for entry in folder.iterdir():
        if os.path.realpath(entry) != wanted.get(entry.name):
            entry.unlink()
    for name in wanted.keys() - set(os.listdir(folder)):
        (folder / name).symlink_to(wanted[name])
