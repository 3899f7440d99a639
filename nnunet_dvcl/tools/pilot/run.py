"""``nnunet_dvcl pilot``: does it help on these data? A short experiment, in folders of its own."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

import yaml
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.configuration import default_num_processes
from nnunetv2.paths import nnUNet_results
from pandas import DataFrame

from nnunet_dvcl.commands import train_command
from nnunet_dvcl.data.folders import check_configuration
from nnunet_dvcl.data.preprocess import preprocess_unlabeled
from nnunet_dvcl.data.storage import write_json
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.figures import plain_style, save_image
from nnunet_dvcl.files import replacing
from nnunet_dvcl.lock import acquire
from nnunet_dvcl.options import read
from nnunet_dvcl.progress import in_words
from nnunet_dvcl.tools.dataset import Dataset
from nnunet_dvcl.tools.device import find_device
from nnunet_dvcl.tools.experiment.experiment_file import Devices, read_experiment
from nnunet_dvcl.tools.experiment.prepare import read_cases
from nnunet_dvcl.tools.experiment.report import write_report
from nnunet_dvcl.tools.experiment.results import collect, of_patients
from nnunet_dvcl.tools.experiment.runner import run_experiment
from nnunet_dvcl.tools.experiment.runs import State, Workplace, all_runs
from nnunet_dvcl.tools.pilot.folders import Folders
from nnunet_dvcl.tools.pilot.picture import draw
from nnunet_dvcl.tools.pilot.schedule import ENOUGH, START, Schedule, Timing, duration, fit, needed
from nnunet_dvcl.tools.pilot.timing import FEW_STEPS, time_trainers
from nnunet_dvcl.tools.pilot.verdict import Verdict, judge
from nnunet_dvcl.tools.running.command import Command
from nnunet_dvcl.tools.split.draw import Fold, Splits, group_by, make_splits
from nnunet_dvcl.tools.split.split_dataset import check_scans
from nnunet_dvcl.tools.trainer_classes import find_trainer_class
from nnunet_dvcl.trainers.base import nnUNetTrainerPlugin
from nnunet_dvcl.trainers.base.config import TrainingConfig
from nnunet_dvcl.trainers.base.lengths import FixedLength

BASELINE = "nnUNetTrainerSupervised"
_MOST_FOLDS = 5


def run_pilot(
    dataset: str,
    configuration: str,
    plans: str,
    *,
    hours: float,
    trainers: Sequence[str],
    devices: Sequence[str] = (),
    group_pattern: str | None = None,
    folder: str | None = None,
) -> int:
    """Does what is not finished of a pilot, and prints which trainer to take and the command to go on with.

    Args:
        dataset, configuration, plans: as nnU-Net's ``-d``, ``-c`` and ``-p``.
        hours: that the trainings may take, timing included.
        trainers: to compare with `BASELINE`.
        devices: as in an experiment file; a GPU where there is one without any.
        group_pattern: for `group_by`; the cases of a patient stay together, and count as one in the test.
        folder: the pilot's; without one it is in nnU-Net's results, beside the models of the data set.

    Returns:
        The exit status: 1 when a training failed, else 0.

    Raises:
        UserError: data set, plans or trainers cannot be used; too few labeled cases, no unlabeled scans, too little
            time; the folder has another pilot, or another process is at work there.
    """
    found = Dataset.find(dataset)
    trainers = tuple(dict.fromkeys([BASELINE, *trainers]))
    for trainer in trainers:
        _check_trainer(trainer)
    devices = read(Devices, list(devices) or _default_device(), "--devices")
    root = Path(folder or Path(nnUNet_results, found.name, "pilots", f"{plans}__{configuration}")).absolute()
    pilot = Pilot(found, configuration, plans, hours, trainers, devices, group_pattern, root)
    pilot.claim()
    with acquire(root / "pilot.lock") or _refuse(root):
        return pilot.run()


def _check_trainer(name: str) -> None:
    trainer = find_trainer_class(name)
    if not issubclass(trainer, nnUNetTrainerPlugin) or issubclass(trainer, FixedLength):
        raise UserError(
            f"{name} has its own length, and a pilot is a short training: take one of `nnunet_dvcl trainers`, without "
            "a number of epochs in its name."
        )


def _default_device() -> str:
    return "cuda:0" if find_device(None).type == "cuda" else "cpu"


def _refuse(root: Path) -> None:
    raise UserError(f"Another process is at work in {root}: wait for it, or give another folder with -o.")


@dataclass(frozen=True)
class Pilot:
    """A pilot and its folder."""

    dataset: Dataset
    configuration: str
    plans: str
    hours: float
    trainers: tuple[str, ...]  # the baseline first
    devices: tuple[str, ...]
    group_pattern: str | None
    root: Path

    def claim(self) -> None:
        """The folder is new or has this pilot; a half-finished one of other values would be mixed up."""
        names = ("configuration", "plans", "group_pattern")
        wanted = {name: getattr(self, name) for name in names} | {"trainers": list(self.trainers)}
        wanted |= {"dataset": self.dataset.name, "labeled cases": sorted(self.dataset.labeled_cases)}
        file = self.root / "pilot.json"
        if not file.is_file():
            if self.root.exists() and any(self.root.iterdir()):
                raise UserError(f"{self.root} is neither empty nor a pilot: give another folder with -o.")
            self._check_data()
            self._check_hours()
            self.root.mkdir(parents=True, exist_ok=True)
            write_json(wanted, str(file))
        made = load_json(str(file))
        if self._schedule_file.is_file():  # until it is fitted, the time can still be changed
            made |= {"hours": load_json(str(self._schedule_file))["hours"]}
            wanted |= {"hours": self.hours}
        if differing := [name for name in wanted if made.get(name) != wanted[name]]:
            raise UserError(
                f"{self.root} has a pilot with other values ({', '.join(differing)}). Give them as they were to go on "
                "with it, or another folder with -o, or delete this one."
            )

    def _check_data(self) -> None:
        dataset, plans = self.dataset, self.plans
        if not dataset.plans_file(plans).is_file():
            raise UserError(
                f"{dataset.plans_file(plans)} does not exist. Plan and preprocess first: nnUNetv2_plan_and_preprocess "
                f"-d {dataset.id} -c {self.configuration}"
            )
        manager = dataset.plans(plans)
        check_configuration(plans, manager.available_configurations, self.configuration)
        if dataset.labeled_cases.keys() - dataset.preprocessed_cases(manager, self.configuration):
            raise UserError(
                f"Not all labeled cases are preprocessed for {self.configuration}: nnUNetv2_preprocess -d {dataset.id} "
                f"-plans_name {plans} -c {self.configuration}"
            )
        if not dataset.unlabeled_scans:
            raise UserError(
                f"There are no scans in {dataset.raw / 'imagesTr_unlabeled'}, and a pilot asks what they are worth: "
                "put them there. Withheld labels are compared with nnunet_dvcl experiment."
            )
        self.folds  # noqa: B018 - raises with too few cases

    def _check_hours(self) -> None:
        """What no machine can do is refused before the timing, which tells the rest."""
        number = len(self.trainers) * (1 + len(self.folds))  # each is timed in a training of its own
        least = duration([START] * number, len(self.devices)) / 3600
        if self.hours < least:
            raise UserError(
                f"--hours {self.hours:g} is too short: {number} trainings, of which {len(self.trainers)} measure the "
                f"time of a step, take {least:.1g} hours for nnU-Net's start alone. Give more."
            )

    @cached_property
    def folds(self) -> list[Fold]:
        """Each labeled case validates in one of up to five folds, and trains in the others."""
        dataset, cases = self.dataset, self.dataset.labeled_cases
        groups = group_by(cases, self.group_pattern) if self.group_pattern else None
        number = len(set(groups.values()) if groups else cases)
        if number < 2:
            of_what = "labeled cases" if groups is None else "groups of labeled cases"
            raise UserError(
                f"{dataset.name} has {number} {of_what}, and a pilot needs 2 at least: each validates while the others "
                "train. Label another one; without it nobody can measure what helps."
            )
        # of no class: one that a single case has trains in all folds but one, and the pilot goes on
        classes = dict.fromkeys(cases, ())
        splits = make_splits(classes, (), labeled=1.0, num_folds=min(number, _MOST_FOLDS), groups=groups)
        if groups:
            check_scans(dataset.name, dataset.json, self.group_pattern, groups, Splits(splits.folds, []))
        return splits.folds

    # ---------------------------------------------------------------- what is done

    def run(self) -> int:
        """See `run_pilot`."""
        print(f"Pilot of {self.dataset}, {self.configuration}: {self.root}", flush=True)
        preprocess_unlabeled(str(self.dataset.id), self.configuration, self.plans, default_num_processes)
        folders = Folders(self.root)
        folders.make(self.dataset, self.plans, self.folds)
        with folders.in_use():
            timing = self._place("timing", FEW_STEPS, [0])
            _tell(f"Timing: {FEW_STEPS.steps} steps of each trainer, and the validation of one fold")
            timings = time_trainers(timing)
            if timings is None:
                print(
                    "Out of memory? Write a smaller configuration with nnunet_dvcl configure, and give it as -c: "
                    f"nnunet_dvcl memory -d {self.dataset.id} -c {self.configuration} -p {self.plans}"
                )
                return 1
            schedule = self._schedule(timings)
            place = self._place("pilot", schedule, range(len(self.folds)))
            self._tell_plan(place, schedule, timings, folders)
            if run_experiment(place) != 0:
                return 1
            verdict = self._conclude(place, schedule)
        self._tell_verdict(verdict)
        return 0

    def _place(self, name: str, schedule: Schedule, folds: Sequence[int]) -> Workplace:
        """The workplace of an experiment file, written where there is none."""
        file = self.root / f"{name}.yaml"
        values = {f"ssl.{key}": value for key, value in asdict(schedule).items()}
        values["ssl.validation_voxels"] = 0  # curves that nobody looks at here
        content = {
            "dataset": self.dataset.name,
            "configurations": {f"{self.configuration}_{name}": {"from": self.configuration, "set": values}},
            "plans": self.plans,
            "splits": {"keep": {"all": list(folds)}},
            "trainers": list(self.trainers),
            "devices": list(self.devices),
            "threads": self._threads,
            "report": {"baseline": BASELINE} | ({"group_by": self.group_pattern} if self.group_pattern else {}),
        }
        with replacing(str(file)) as partial:
            Path(partial).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return Workplace(read_experiment(file))

    @property
    def _threads(self) -> int:
        """Of a training on the CPU: as the shell says, or all that the others leave."""
        said = os.environ.get("OMP_NUM_THREADS", "")
        return int(said) if said.isdigit() and int(said) else max(1, (os.cpu_count() or 1) // len(self.devices))

    def _schedule(self, timings: dict[str, Timing]) -> Schedule:
        """Fitted once: a pilot that goes on has the schedule that it was begun with."""
        file = self._schedule_file
        if not file.is_file():
            number = len(self.devices)
            left = self.hours * 3600 - duration([t.training(FEW_STEPS) for t in timings.values()], number)
            schedule = fit(list(timings.values()), len(self.folds), number, left, self._longest)
            write_json({"hours": self.hours, "schedule": asdict(schedule)}, str(file))
        return Schedule(**load_json(str(file))["schedule"])

    @cached_property
    def _longest(self) -> Schedule:
        """What the configuration itself asks for."""
        configuration = self.dataset.plans(self.plans).get_configuration(self.configuration).configuration
        config = TrainingConfig.from_plans(configuration)
        return Schedule(config.num_epochs, config.num_iterations_per_epoch, config.num_val_iterations_per_epoch)

    @property
    def _schedule_file(self) -> Path:
        return self.root / "schedule.json"

    # ---------------------------------------------------------------- what is said

    def _tell_plan(self, place: Workplace, schedule: Schedule, timings: dict[str, Timing], folders: Folders) -> None:
        runs = all_runs(place.experiment)
        waiting = [run for run in runs if place.state(run) is not State.FINISHED]
        _tell(
            f"{len(self.folds)} folds x {len(self.trainers)} trainers = {len(runs)} trainings, "
            f"{len(runs) - len(waiting)} finished; each of {schedule.steps} steps ({schedule.num_epochs} epochs of "
            f"{schedule.num_iterations_per_epoch})"
        )
        for trainer, timing in timings.items():
            print(f"   {trainer}: {timing.step:.2g} s a step, {in_words(timing.training(schedule))} a training")
        seconds = duration([timings[run.row.trainer].training(schedule) for run in waiting], len(self.devices))
        enough = self._longest.shortened(ENOUGH)
        if schedule.steps < enough.steps:
            hours = needed(list(timings.values()), len(self.folds), len(self.devices), enough) / 3600
            print(
                f"   So few steps may end before a difference shows: {enough.steps} take about {hours:.2g} hours. To "
                "have them, stop here, and give --hours and another -o."
            )
        print(f"   Left: about {in_words(seconds)}, until {datetime.now() + timedelta(seconds=seconds):%a %H:%M}")
        variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in folders.variables.items())
        print(f"   More of it: {variables} {Command('nnunet_dvcl', 'experiment', 'status', place.experiment.file)}")

    def _conclude(self, place: Workplace, schedule: Schedule) -> Verdict:
        cases = read_cases(place)
        write_report(place, self.root / "report")
        dice = of_patients(_dice_of_cases(collect(place, cases).cases, self.trainers), self.group_pattern)
        pairs = "patients" if self.group_pattern else "cases"
        verdict = judge(dice, schedule.steps, self._longest.steps, pairs)
        with plain_style():
            save_image(draw(dice, verdict.sentence, pairs), self.root / "pilot.png", dpi=150)
        return verdict

    def _tell_verdict(self, verdict: Verdict) -> None:
        _tell(verdict.sentence)
        print(f"   Picture: {self.root / 'pilot.png'}\n   Tables: {self.root / 'report' / 'report.md'}")
        if verdict.trainer is not None:
            _tell(f"Go on with the full training:\n{self._full_training(verdict.trainer)}")

    def _full_training(self, trainer: str) -> str:
        dataset = self.dataset
        # nnU-Net draws five folds where there is no file, and cannot with fewer cases
        fold = "all" if len(dataset.labeled_cases) < 5 and not dataset.splits_file.is_file() else 0
        return train_command(str(dataset.id), self.configuration, fold, trainer, self.plans)


def _dice_of_cases(cases: DataFrame, trainers: Sequence[str]) -> DataFrame:
    """A line a case, a column a trainer: the mean over the organs, as the report tests it."""
    dice = cases["Dice"].groupby(["trainer", "case"], observed=True).mean()
    return dice.unstack("trainer")[list(trainers)]


def _tell(text: str) -> None:
    print(f"\n== {text}", flush=True)
