"""The runs of an experiment: each combination of its file, where nnU-Net keeps it, and how far it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from pathlib import Path

from nnunetv2.paths import nnUNet_results

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.lock import is_held, lock_of
from nnunet_dvcl.tools.dataset import Dataset
from nnunet_dvcl.tools.experiment.experiment_file import IMAGES_TS, Amount, Configuration, Experiment, Row
from nnunet_dvcl.tools.running.progress import Model
from nnunet_dvcl.tools.selftrain import Student

RECORD = "experiment_run.json"
"""In a run's folder: the cases and values that it was started with."""


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
    """One training: a row of the tables in one configuration, amount of labels, fold and seed."""

    row: Row
    configuration: Configuration
    amount: Amount
    fold: int  # of the cross-validation
    split: int  # number of the entry in splits_final.json, nnU-Net's fold
    seed: int

    @property
    def name(self) -> str:
        names = self.row.name, self.configuration.name, self.amount.name
        return "__".join([*names, f"fold{self.fold}", f"seed{self.seed}"])

    @property
    def derived_configuration(self) -> str:
        """The configuration of the plans that holds its values; rows without values of their own share it."""
        own = f"_{self.row.name}" if self.row.values else ""
        return f"{self.configuration.name}{own}_seed{self.seed}"

    @property
    def teacher(self) -> Run:
        """For a row of self-training, the run that trains its first teacher."""
        return replace(self, row=self.row.model_copy(update={"selftrain": None}))

    @property
    def assignments(self) -> list[str]:
        """What makes its configuration, as for ``nnunet_dvcl configure``."""
        values = [*self.configuration.values, *self.row.values, ("ssl.seed", self.seed)]
        return [f"{key}={value}" for key, value in values]


def all_runs(experiment: Experiment) -> list[Run]:
    """Every run of the experiment. Seed by seed, so that a table is soon complete with one seed."""
    splits = experiment.splits
    folds = [(amount, fold) for amount in splits.labeled for fold in (amount.folds or splits.use)]
    return [
        Run(row, configuration, amount, fold, fold if amount.folds else number, seed)
        for seed in experiment.seeds
        for number, (amount, fold) in enumerate(folds)
        for configuration in experiment.configurations
        for row in experiment.rows
        if row.labeled is None or amount.name in row.labeled
    ]


def find_runs(runs: Iterable[Run], names: Sequence[str]) -> list[Run]:
    """The runs of these names, all of them without any; ``UserError`` for an unknown name."""
    by_name = {run.name: run for run in runs}
    if unknown := [name for name in names if name not in by_name]:
        raise UserError(f"There is no run {unknown[0]}. The runs are listed by nnunet_dvcl experiment status.")
    return [by_name[name] for name in names or by_name]


@dataclass(frozen=True)
class Workplace:
    """The folders of an experiment."""

    experiment: Experiment

    @cached_property
    def dataset(self) -> Dataset:
        """Raises ``UserError`` where a folder of nnU-Net's is not set, or there is no such data set."""
        return Dataset.find(self.experiment.dataset)

    @property
    def folder(self) -> Path:
        """Logs, locks and the links to the test images."""
        return Path(nnUNet_results, self.dataset.name, "experiments", self.experiment.name)

    @property
    def has_test(self) -> bool:
        return bool(self.experiment.splits.test)

    @property
    def has_own_test(self) -> bool:
        """Whether no test case is among the labeled."""
        return self.experiment.splits.test == IMAGES_TS

    @property
    def test_images(self) -> Path:
        """For ``nnUNetv2_predict``; links, where the test cases are among the labeled."""
        return self.dataset.raw / "imagesTs" if self.has_own_test else self.folder / "test_images"

    @property
    def truth(self) -> Path:
        """The labels of the cases on which the runs are compared."""
        return self.dataset.raw / "labelsTs" if self.has_own_test else self.dataset.preprocessed / "gt_segmentations"

    def source(self, run: Run) -> Model:
        """What is trained on the data set itself; for a row of self-training, its first teacher."""
        return Model(self.dataset.name, self.experiment.plans, run.derived_configuration, run.split, run.row.trainer)

    def model(self, run: Run) -> Model | None:
        """What the run is after; None while self-training has not made its last data set yet."""
        if run.row.selftrain is None:
            return self.source(run)
        return Student(self.source(run), run.row.selftrain.rounds, run.row.selftrain.ignore_uncertain).find()

    def home(self, run: Run) -> Path:
        """Has the run's record, and its lock beside it: the folder of the fold that nnU-Net trains, but for
        self-training, which trains several."""
        if run.row.selftrain is None:
            return self.source(run).folder
        return self.folder / "selftrain" / run.name

    def log(self, run: Run) -> Path:
        return self.folder / "logs" / f"{run.name}.log"

    def failure(self, run: Run) -> Path:
        """A file that is there when the last attempt failed."""
        return self.log(run).with_suffix(".failed")

    def lock(self, run: Run) -> Path:
        """That of the results: two experiments that share a run do not do it at once."""
        return lock_of(self.home(run))

    def predictions(self, run: Run) -> Path:
        """Those on which it is compared: of the test cases, or of the fold's validation cases, once it is trained."""
        return self.home(run) / "test" if self.has_test else self.model(run).folder / "validation"

    def is_trained(self, run: Run) -> bool:
        model = self.model(run)
        return model is not None and model.is_trained

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
        return State.BROKEN if self.source(run).is_begun else State.WAITING
