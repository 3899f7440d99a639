"""Where nnU-Net keeps a data set, and where its unlabeled scans live beside it."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from os.path import basename, dirname, isfile, join

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetBaseDataset
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_dvcl.commands import dataset_number
from nnunet_dvcl.data.messages import bullet_list
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.files import visible_files
from nnunet_dvcl.options import did_you_mean

IMAGES_FOLDER = "imagesTr_unlabeled"


@dataclass(frozen=True)
class DatasetFolders:
    """The folders of one data set in one configuration."""

    raw: str  # as by `raw_folder`
    images: str  # imagesTr_unlabeled
    preprocessed: str
    labeled: str  # the preprocessed cases

    @classmethod
    def of(cls, plans_manager: PlansManager, configuration_manager: ConfigurationManager) -> "DatasetFolders":
        """Raises ``UserError`` when ``nnUNet_preprocessed`` is not set, or a name in the plans leads elsewhere."""
        name, identifier = plans_manager.dataset_name, configuration_manager.data_identifier
        check_name(name, "dataset_name of the plans")
        check_name(identifier, "data_identifier of the plans")
        raw, preprocessed = raw_folder(name), join(preprocessed_root(), name)
        return cls(raw, join(raw, IMAGES_FOLDER), preprocessed, join(preprocessed, identifier))

    @property
    def unlabeled(self) -> str:
        return f"{self.labeled}_unlabeled"

    @property
    def splits_file(self) -> str:
        return join(self.preprocessed, "splits_final.json")

    def example_image(self, dataset_json: dict) -> str:
        """How the files of a scan are named, for messages."""
        names = [f"CASE_{c:04d}{dataset_json['file_ending']}" for c in range(num_channels(dataset_json))]
        return join(self.images, ", ".join(names))

    def misnamed_images(self) -> str:
        """A sentence on folders that were probably meant to be `images`, after a space; empty where there are none."""
        names = os.listdir(self.raw) if os.path.isdir(self.raw) else ()
        meant = [name for name in sorted(names) if _is_like_images_folder(name) and os.path.isdir(join(self.raw, name))]
        return f" There is {join(self.raw, meant[0])}: was it meant? Rename it to {IMAGES_FOLDER}." if meant else ""

    def dataset_class(self) -> type[nnUNetBaseDataset]:
        """nnU-Net's dataset class of the labeled cases; ``UserError`` when they are not preprocessed."""
        try:
            return infer_dataset_class(self.labeled)
        except (FileNotFoundError, NotADirectoryError):
            problem = "does not exist"
        except (AssertionError, KeyError) as error:
            problem = f"does not look like a folder of preprocessed cases ({error})"
        raise UserError(f"{self.labeled} {problem}. Preprocess the labeled cases first, with nnUNetv2_preprocess.")


def _is_like_images_folder(name: str) -> bool:
    return name != IMAGES_FOLDER and re.search("un[-_ ]?label", name, re.IGNORECASE) is not None


def labeled_cases(dataset_class: type[nnUNetBaseDataset], folder: str) -> list[str]:
    """The cases that are preprocessed with labels, as nnU-Net finds them.

    Raises:
        UserError: names hidden files, such as a Mac's ``._NAME``: nnU-Net would take them for cases.
    """
    cases = dataset_class.get_identifiers(folder)
    if hidden := sorted(case for case in cases if case.startswith(".")):
        raise UserError(
            f"{folder} holds hidden files that nnU-Net takes for cases, as a Mac leaves them when it copies. Remove "
            f"them, and from splits_final.json where they are named:\n{bullet_list(hidden)}"
        )
    return cases


def num_channels(dataset_json: dict) -> int:
    return len(dataset_json["channel_names"] if "channel_names" in dataset_json else dataset_json["modality"])


def find_dataset_name(dataset_name_or_id: str) -> str:
    """DatasetXXX_Name of a data set that is named as for nnU-Net's ``-d``; ``UserError`` where there is none."""
    try:
        return str(maybe_convert_to_dataset_name(dataset_name_or_id))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"No data set {dataset_name_or_id}: {error}") from error


def find_plans_file(dataset_name_or_id: str, plans_identifier: str) -> str:
    """The plans of a data set that is named as for nnU-Net's ``-d`` and ``-p``.

    Raises:
        UserError: no such data set, or it is not planned; a name that leads elsewhere.
    """
    check_name(plans_identifier, "plans identifier")
    root, name = preprocessed_root(), find_dataset_name(dataset_name_or_id)
    check_name(name, "data set")
    for file in ("dataset.json", f"{plans_identifier}.json"):
        if not isfile(path := join(root, name, file)):
            raise UserError(f"{path} does not exist{_how_to_plan(path)}")
    return path


def _how_to_plan(missing: str) -> str:
    folder, plans = dirname(missing), basename(missing).removesuffix(".json")
    command = f"run nnUNetv2_plan_and_preprocess -d {dataset_number(basename(folder))}"
    if plans in ("dataset", "nnUNetPlans"):
        return f": {command}."
    others = [name.removesuffix(".json") for name in visible_files(folder) if name.endswith(".json")]
    planned = f"{command} with the planner that makes them (-pl), or with -overwrite_plans_name {plans}"
    return f".{did_you_mean(plans, others)} To make these plans, {planned}."


def check_configuration(plans: str, known: Iterable[str], configuration: str) -> None:
    """``UserError`` unless the plans of this name have the configuration; names those that they have."""
    known = list(known)
    if configuration not in known:
        raise UserError(f"The plans {plans} have no configuration {configuration}. They have: {', '.join(known)}.")


def check_name(name: object, what: str) -> None:
    """``UserError`` unless `name` names something in a folder: a path could lead out of nnU-Net's folders."""
    if not isinstance(name, str) or not name.strip(".") or set(name) & set("/\\\0"):
        raise UserError(f"{name!r} is no {what}: expected a name, not a path.")


def raw_folder(name: str) -> str:
    """Of a data set, there or not; where ``nnUNet_raw`` is not set, a path for messages, at which nothing is."""
    return join(nnUNet_raw.get() or "$nnUNet_raw", name)


def raw_root() -> str:
    """The folder of nnU-Net's raw data sets; ``UserError`` where it is not set, as for `preprocessed_root`."""
    return _root(nnUNet_raw, "raw")


def preprocessed_root() -> str:
    return _root(nnUNet_preprocessed, "preprocessed")


def _root(variable: os.PathLike, kind: str) -> str:
    if not variable.is_set():
        raise UserError(
            f"The environment variable {variable.env_var_name} is not set. Let it name the folder that holds nnU-Net's "
            f"{kind} data sets."
        )
    return str(variable)
