"""What in the plans decides how a scan is preprocessed, and whether a folder was made with just that."""

import json
from os.path import join
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from pandas import json_normalize

from nnunet_dvcl.data.messages import bullet_list
from nnunet_dvcl.data.storage import HIDDEN_FOLDER
from nnunet_dvcl.errors import UserError

_CONFIGURATION_KEYS = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)


def preprocessing_settings(
    plans_manager: PlansManager, configuration_manager: ConfigurationManager, dataset_class: type[nnUNetBaseDataset]
) -> dict:
    """All that decides what a preprocessed scan looks like, as JSON would hold it."""
    settings = {key: configuration_manager.configuration.get(key) for key in _CONFIGURATION_KEYS}
    settings |= {
        "transpose_forward": plans_manager.transpose_forward,
        "image_reader_writer": plans_manager.plans["image_reader_writer"],
        "foreground_intensity_properties_per_channel": plans_manager.foreground_intensity_properties_per_channel,
        "dataset_class": dataset_class.__name__,
    }
    return json.loads(json.dumps(settings))


def manifest_file(folder: str) -> str:
    return join(folder, HIDDEN_FOLDER, "manifest.json")


def is_current(folder: str, settings: dict) -> bool:
    """Whether ``folder`` was made with ``settings``; False when nothing was made yet.

    Raises:
        UserError: the folder holds cases that were made with other settings (names what differs) or without a manifest.
    """
    file = manifest_file(folder)
    try:
        made_with = load_json(file)
    except (FileNotFoundError, ValueError):
        made_with = None
    if made_with == settings:
        return True
    if not any(Path(folder).glob("*.pkl")):
        return False
    if isinstance(made_with, dict):
        problem = f"was preprocessed with other plans:\n{bullet_list(_differences(made_with, settings))}"
    else:
        problem = f"does not say which plans it was made with: {file} is missing or damaged (copied without it?)."
    raise UserError(
        f"{folder} {problem}\nDelete that folder; it is made again from the raw scans, by `nnunet_dvcl preprocess` or "
        f"by the next training run."
    )


def _differences(old: dict, new: dict) -> list[str]:
    old, new = (json_normalize(settings).to_dict("records")[0] for settings in (old, new))
    return [
        f"{key}: {old.get(key)} in the folder, {new.get(key)} in the plans"
        for key in sorted(old | new)
        if old.get(key) != new.get(key)
    ]
