"""The runs of an experiment: each combination of its file, where nnU-Net keeps it, and how far it is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import product
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.experiments.file import IMAGES_TS, Amount, Configuration, Experiment, Row
from nnunet_dvcl.experiments.lock import is_held

CHECKPOINT = "checkpoint_final.pth"
"""Of the last epoch: nothing is selected, on no cases."""
CHECKPOINTS_TO_GO_ON_FROM = ("checkpoint_latest.pth", "checkpoint_best.pth")
RECORD = "experiment_run.json"
"""In a run's results folder: the cases and values that it was started with."""


class State(Enum):
    """How far a run is, by the files that nnU-Net writes."""

    WAITING = "waiting"
    RUNNING = "running"  # here, or in another process that shares the folders
    BROKEN = "broken off"  # has a checkpoint to go on from
    TRAINED = "trained"  # and validated; the test cases are not predicted yet
    FINISHED = "finished"
    FAILED = "failed"  # the last attempt, that is; the next one goes on


@dataclass(frozen=True)
class Run:
    """One training: a row of the tables in one configuration, amount of labels, fold and seed.

    Attributes:
        fold: number of the cross-validation fold.
        split: number of the entry in ``splits_final.json``, nnU-Net's fold.
    """

    row: Row
    configuration: Configuration
    amount: Amount
    fold: int
    split: int
    seed: int

    @property
    def name(self) -> str:
        parts = (self.row.name, self.configuration.name, self.amount.name, f"fold{self.fold}", f"seed{self.seed}")
        return "__".join(parts)

    @property
    def derived_configuration(self) -> str:
        """The configuration of the plans that holds its values; rows without values of their own share it."""
        own = f"_{self.row.name}" if self.row.values else ""
        return f"{self.configuration.name}{own}_seed{self.seed}"

    @property
    def assignments(self) -> list[str]:
        """What makes its configuration, as for ``nnunet_dvcl configure``."""
        values = [*self.configuration.values, *self.row.values, ("ssl.seed", self.seed)]
        return [f"{key}={json.dumps(value)}" for key, value in values]


def split_numbers(experiment: Experiment) -> dict[tuple[str, int], int]:
    """(name of an amount, fold) -> entry of ``splits_final.json``."""
    splits = experiment.splits
    if splits.keep:
        return {(amount.name, fold): fold for amount in splits.labeled for fold in amount.folds}
    pairs = product([amount.name for amount in splits.labeled], splits.use)
    return {pair: number for number, pair in enumerate(pairs)}


def all_runs(experiment: Experiment) -> list[Run]:
    """Every run of the experiment. Seed by seed, so that a table is soon complete with one seed."""
    numbers = split_numbers(experiment)
    return [
        Run(row, configuration, amount, fold, numbers[amount.name, fold], seed)
        for seed in experiment.seeds
        for amount in experiment.splits.labeled
        for fold in (amount.folds or experiment.splits.use)
        for configuration in experiment.configurations
        for row in experiment.rows
        if row.labeled is None or amount.name in row.labeled
    ]


def find_runs(runs: Iterable[Run], names: Iterable[str]) -> list[Run]:
    """The runs of these names, all of them without any.

    Raises:
        UserError: an unknown name.
    """
    names, by_name = list(names), {run.name: run for run in runs}
    for name in names:
        if name not in by_name:
            raise UserError(f"There is no run {name}. The runs are listed by nnunet_dvcl experiment status.")
    return [by_name[name] for name in names] or list(by_name.values())


@dataclass(frozen=True)
class Workplace:
    """The folders of an experiment.

    Raises:
        UserError: a folder of nnU-Net's is not set, or there is no such data set.
    """

    experiment: Experiment

    @cached_property
    def dataset(self) -> str:
        """DatasetXXX_Name"""
        for variable in (nnUNet_raw, nnUNet_preprocessed, nnUNet_results):
            if not variable.is_set():
                raise UserError(f"The environment variable {variable.env_var_name} is not set: an experiment needs it.")
        try:
            name = maybe_convert_to_dataset_name(self.experiment.dataset)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"No data set {self.experiment.dataset}: {error}") from error
        if not Path(nnUNet_raw, name, "dataset.json").is_file():
            raise UserError(f"{Path(nnUNet_raw, name, 'dataset.json')} does not exist: the data set is missing.")
        return name

    @property
    def dataset_id(self) -> str:
        """As nnU-Net's commands take it."""
        return str(int(self.dataset[len("Dataset") :][:3]))

    @property
    def raw(self) -> Path:
        return Path(nnUNet_raw, self.dataset)

    @property
    def preprocessed(self) -> Path:
        return Path(nnUNet_preprocessed, self.dataset)

    @cached_property
    def dataset_json(self) -> dict:
        return load_json(str(self.raw / "dataset.json"))

    @cached_property
    def labeled_cases(self) -> dict[str, dict]:
        """Case -> ``images`` (one file a channel) and ``label``, as nnU-Net finds them."""
        if "dataset" in self.dataset_json:
            return get_filenames_of_train_images_and_targets(str(self.raw), deepcopy(self.dataset_json))
        # nnU-Net would start a pool of processes to list a folder
        ending, images = self.dataset_json["file_ending"], {}
        for file in sorted((self.raw / "imagesTr").glob(f"*{ending}")):
            images.setdefault(file.name[: -len(ending) - len("_0000")], []).append(str(file))
        labels = self.raw / "labelsTr"
        return {case: {"images": files, "label": str(labels / f"{case}{ending}")} for case, files in images.items()}

    @property
    def folder(self) -> Path:
        """Logs, locks and the links to the test images."""
        return Path(nnUNet_results, self.dataset, "experiments", self.experiment.name)

    @property
    def has_test(self) -> bool:
        return bool(self.experiment.splits.test)

    @property
    def test_images(self) -> Path:
        own = self.experiment.splits.test == IMAGES_TS
        return self.raw / "imagesTs" if own else self.folder / "test_images"

    @property
    def test_labels(self) -> Path:
        own = self.experiment.splits.test == IMAGES_TS
        return self.raw / "labelsTs" if own else self.preprocessed / "gt_segmentations"

    def results(self, run: Run) -> Path:
        """The folder of the fold that nnU-Net trains."""
        model = f"{run.row.trainer}__{self.experiment.plans}__{run.derived_configuration}"
        return Path(nnUNet_results, self.dataset, model, f"fold_{run.split}")

    def log(self, run: Run) -> Path:
        return self.folder / "logs" / f"{run.name}.log"

    def failure(self, run: Run) -> Path:
        """A file that is there when the last attempt failed."""
        return self.log(run).with_suffix(".failed")

    def lock(self, run: Run) -> Path:
        """Beside the results, so that two experiments that share a run do not do it at once."""
        folder = self.results(run)
        return folder.with_name(f"{folder.name}.lock")

    def predictions(self, run: Run) -> Path:
        """Those on which it is compared: of the test cases, or of the fold's validation cases."""
        return self.results(run) / ("test" if self.has_test else "validation")

    def is_trained(self, run: Run) -> bool:
        folder = self.results(run)
        return (folder / CHECKPOINT).is_file() and (folder / "validation/summary.json").is_file()

    def is_tested(self, run: Run) -> bool:
        """nnU-Net's predictor writes the files one by one; this one is written after the last."""
        return not self.has_test or (self.predictions(run) / RECORD).is_file()

    def state(self, run: Run) -> State:
        if is_held(self.lock(run)):
            return State.RUNNING
        if self.is_trained(run) and self.is_tested(run):
            return State.FINISHED
        if self.failure(run).is_file():
            return State.FAILED
        if self.is_trained(run):
            return State.TRAINED
        folder = self.results(run)
        some = any((folder / name).is_file() for name in (CHECKPOINT, *CHECKPOINTS_TO_GO_ON_FROM))
        return State.BROKEN if some else State.WAITING
