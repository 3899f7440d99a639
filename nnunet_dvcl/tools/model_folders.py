"""Trained models as nnU-Net leaves them: result folders, their names, checkpoints and organs."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from os.path import abspath, basename, dirname, isdir, isfile, join
from pathlib import Path
from typing import NamedTuple

import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.file_path_utilities import convert_identifier_to_trainer_plans_config, get_output_folder

from nnunet_dvcl.commands import train_command
from nnunet_dvcl.data.folders import find_plans_file
from nnunet_dvcl.errors import UserError

BEST, LAST = ("checkpoint_best.pth",), ("checkpoint_final.pth", "checkpoint_latest.pth")
NEWEST_FIRST = (*LAST, *BEST)


class TrainedFold(NamedTuple):
    """One fold of a trained model: ``DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION/fold_X``."""

    folder: str
    trainer: str
    configuration: str
    plans: str
    fold: str

    @classmethod
    def at(cls, folder: str) -> TrainedFold:
        """Raises ``UserError`` where the folder is not named as nnU-Net names it."""
        model = dirname(folder)
        names = convert_identifier_to_trainer_plans_config(model)
        if len(names) != 3:
            raise UserError(
                f"{model} is not named as a trained model's folder: expected TRAINER__PLANS__CONFIGURATION, for "
                "instance nnUNetTrainerDVCL__nnUNetPlans__3d_fullres."
            )
        trainer, plans, configuration = names
        return cls(folder, trainer, configuration, plans, basename(folder).removeprefix("fold_"))

    def saved(self, names: Sequence[str]) -> list[str]:
        """Those of the checkpoints that are there."""
        return [name for name in names if isfile(join(self.folder, name))]

    def newest_checkpoint(self) -> str | None:
        """The file of the latest state of the training, None where nothing is saved yet."""
        return next((join(self.folder, name) for name in self.saved(NEWEST_FIRST)), None)

    def organs(self) -> list[str]:
        """The names of nnU-Net's Dice values."""
        return organ_names(read_dataset_json(dirname(self.folder)))


def find_folds(result_folder: str) -> list[TrainedFold]:
    """The folds below a trained model's folder that have a checkpoint, or the one fold that the folder is.

    ``UserError`` where there is no such folder, it is not a trained model's, or nothing is saved there yet.
    """
    folder = abspath(result_folder)
    if not isdir(folder):
        raise UserError(
            f"{result_folder} does not exist: expected the folder of a trained model, "
            "$nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION, or of one of its folds."
        )
    is_fold = basename(folder).startswith("fold_")
    candidates = [folder] if is_fold else sorted(str(path) for path in Path(folder).glob("fold_*") if path.is_dir())
    folds = [TrainedFold.at(path) for path in candidates]
    if trained := [fold for fold in folds if fold.newest_checkpoint()]:
        return trained
    where = "" if is_fold else " in a folder fold_X"
    raise UserError(f"{result_folder} has no checkpoint: expected one of {', '.join(NEWEST_FIRST)}{where}.")


def find_trained(dataset_name_or_id: str, trainer: str, plans: str, configuration: str, fold: int | str) -> TrainedFold:
    """The result folder of a training, named as for nnU-Net's commands.

    ``UserError`` where there is no such data set or plans, or it is not trained: gives the command that trains it.
    """
    dataset = basename(dirname(find_plans_file(dataset_name_or_id, plans)))
    if not nnUNet_results.is_set():
        raise UserError("The environment variable nnUNet_results is not set. Let it name the folder of trained models.")
    trained = TrainedFold.at(get_output_folder(dataset, trainer, plans, configuration, fold))
    if trained.newest_checkpoint() is None:
        raise UserError(
            f"{trained.folder} has no checkpoint: train {trainer} first, with "
            f"{train_command(dataset_name_or_id, configuration, fold, trainer, plans)}"
        )
    return trained


def choose_checkpoints(trained: TrainedFold, wanted: Sequence[str]) -> list[str]:
    """The wanted files, or the best and the last; ``UserError`` where one is not there."""
    chosen = []
    for names in [(f"{name.removesuffix('.pth')}.pth",) for name in wanted] or [BEST, LAST]:
        if not (there := trained.saved(names)):
            has = ", ".join(trained.saved(NEWEST_FIRST))
            raise UserError(f"{trained.folder} has no {' or '.join(names)}. It has {has}: choose with -chk.")
        chosen.append(there[0])
    return chosen


def load_checkpoint(file: str) -> dict:
    """A checkpoint on the CPU, loaded as nnU-Net loads it; ``UserError`` where it is broken, or being written."""
    try:
        return torch.load(file, map_location="cpu", weights_only=False)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{file} cannot be read ({error}). Is it being written? Try again.") from error


def read_dataset_json(model_folder: str) -> dict:
    file = join(model_folder, "dataset.json")
    if not isfile(file):
        raise UserError(f"{file} does not exist: nnU-Net puts it beside the folds when it starts a training.")
    return load_json(file)


def organ_names(dataset_json: dict) -> list[str]:
    """The foreground labels by value, as nnU-Net orders them, or its regions as they are listed."""
    labels = {name: value for name, value in dataset_json["labels"].items() if name != "ignore"}
    foreground = [name for name, value in labels.items() if value not in (0, [0])]
    has_regions = any(isinstance(value, list) for value in labels.values())
    return foreground if has_regions else sorted(foreground, key=labels.get)


def class_names(dataset_json: dict) -> list[str]:
    """The classes that `nnunet_dvcl.labels` counts: background, then the labels; with regions those that they paint."""
    names = organ_names(dataset_json)
    order = dataset_json.get("regions_class_order")
    if order is not None:
        painted = dict(zip(order, names, strict=True))  # of several regions that paint one label, the last
        names = [painted[label] for label in sorted(painted) if label != 0]
    return ["background", *names]


def short_name(trainer: str) -> str:
    """The trainer without what all names begin with."""
    return trainer.removeprefix("nnUNetTrainer") or trainer


def distinct_labels(folds: Sequence[TrainedFold]) -> list[str]:
    """The shortest texts that tell folds apart: the trainer, and whatever else is not the same for all."""
    differing = [field for field in ("configuration", "plans", "fold") if len({getattr(f, field) for f in folds}) > 1]
    values = [fold._replace(trainer=short_name(fold.trainer), fold=f"fold {fold.fold}") for fold in folds]
    labels = [", ".join(getattr(fold, field) for field in ("trainer", *differing)) for fold in values]
    # the same training of two data sets, or on two machines
    return [fold.folder if labels.count(label) > 1 else label for fold, label in zip(folds, labels, strict=True)]
