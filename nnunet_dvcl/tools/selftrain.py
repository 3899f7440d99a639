"""``nnunet_dvcl selftrain``: offline self-training, with nnU-Net's own commands and trainers.

A network that was trained on the labeled cases predicts the unlabeled ones; another one is trained on both. nnU-Net's
maintainers recommend it where others reach for semi-supervised losses (MIC-DKFZ/nnUNet, issues 2233 and 2338).
"""

import json
import math
import os
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results

from nnunet_dvcl.data.folders import check_configuration, find_plans_file
from nnunet_dvcl.data.splits import check_scans_have_no_label, withheld_cases
from nnunet_dvcl.data.storage import write_json
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.lock import acquire, lock_of, locked
from nnunet_dvcl.progress import with_progress
from nnunet_dvcl.tools.dataset import Dataset, link_images
from nnunet_dvcl.tools.running.command import Command
from nnunet_dvcl.tools.running.progress import Model, without_file
from nnunet_dvcl.tools.trainer_classes import find_trainer_class
from nnunet_dvcl.trainers import nnUNetTrainerSSL

RECORD = "selftrain.json"
"""In the raw folder of a data set that self-training made: what it was made of."""
IMAGES, PREDICTIONS, LABELS = "imagesPseudo", "predictionsPseudo", "labelsPseudo"
LAST_ID = 999


@dataclass(frozen=True)
class Student:
    """A round: the data set that holds its pseudo-labels, made or yet to be made."""

    teacher: Model  # of the first round, which was trained on the labeled cases alone
    round: int  # from 1
    ignore_uncertain: float | None  # voxels of less probability get the ignore label; None: no voxel

    def find(self) -> Model | None:
        """What is trained on its data set, where there is one."""
        for file in sorted(Path(nnUNet_raw).glob(f"Dataset*/{RECORD}")):
            if load_json(str(file))["student"] == asdict(self):
                return self.trained_on(file.parent.name)
        return None

    def trained_on(self, dataset: str) -> Model:
        return replace(self.teacher, dataset=dataset, fold=0)


def selftrain(
    dataset_name_or_id: str,
    configuration: str,
    fold: int,
    trainer: str = "nnUNetTrainer",
    plans: str = "nnUNetPlans",
    rounds: int = 1,
    ignore_uncertain: float | None = None,
    first_id: int | None = None,
    device: str = "cuda",
) -> Path:
    """Trains, predicts the unlabeled cases, trains again on both; what is finished is not done again.

    Args:
        rounds: how often the unlabeled cases are predicted, each time by the network trained last.
        ignore_uncertain: probability, see `Student`.
        first_id: the data sets with pseudo-labels take the free numbers from here on; None: behind all that are there.
        dataset_name_or_id, configuration, fold, trainer, plans, device: as for ``nnUNetv2_train``.

    Returns:
        The folder of the last trained fold.

    Raises:
        UserError: no such data set or plans, no unlabeled case, a semi-supervised trainer, a command failed.
    """
    refuse_semi_supervised(trainer)
    dataset = Dataset.find(dataset_name_or_id)
    teacher = Model(dataset.name, plans, configuration, fold, trainer)
    source = _Source(dataset, teacher)
    source.check()
    _train(teacher, device)
    current = teacher
    for number in range(1, rounds + 1):
        student = Student(teacher, number, ignore_uncertain)
        model = student.find() or _claim(student, source, first_id)
        dataset = Dataset(model.dataset)
        _check_origin(dataset, source)
        print(f"Round {number}: {dataset}", flush=True)
        if not model.is_trained:
            pseudo_labels = _predict(current, source, dataset, ignore_uncertain, device)
            _make_dataset(source, dataset, pseudo_labels, ignore_uncertain)
            _train(model, device)
        current = model
    return current.folder


def is_semi_supervised(trainer: str) -> bool:
    return issubclass(find_trainer_class(trainer), nnUNetTrainerSSL)


def refuse_semi_supervised(trainer: str) -> None:
    """``UserError`` for a trainer that needs unlabeled cases of its own, and for one that is not there."""
    if is_semi_supervised(trainer):
        raise UserError(
            f"{trainer} needs unlabeled cases, of which self-training leaves none: take nnUNetTrainer or "
            "nnUNetTrainerSupervised."
        )


# ---------------------------------------------------------------- the data set it starts from


@dataclass(frozen=True)
class _Source:
    """Cases of the fold: labeled ones, unlabeled ones, those to validate on."""

    dataset: Dataset
    teacher: Model

    @cached_property
    def split(self) -> dict[str, list[str]]:
        file, fold = self.dataset.splits_file, self.teacher.fold
        splits = load_json(str(file)) if file.is_file() else []
        if fold >= len(splits):
            raise UserError(f"{file} has no fold {fold}: make the splits first, with nnunet_dvcl split.")
        withheld = withheld_cases(str(file), fold, self.dataset.labeled_cases)  # checks the fold too
        return {**splits[fold], "unlabeled": withheld}

    @cached_property
    def unlabeled_images(self) -> dict[str, list[str]]:
        """Case -> its images, one file a channel. No label of them is read."""
        labeled, scans = self.dataset.labeled_cases, self.dataset.unlabeled_scans
        check_scans_have_no_label(scans, labeled, str(self.dataset.raw / "imagesTr_unlabeled"))
        return {case: labeled[case]["images"] for case in self.split["unlabeled"]} | scans

    @cached_property
    def made_of(self) -> dict:
        """All that its students depend on, as JSON holds it."""
        plans = self.dataset.plans(self.teacher.plans)
        configuration = plans.get_configuration(self.teacher.configuration).configuration
        split = {role: sorted(self.split[role]) for role in ("train", "val")} | {"unlabeled": [*self.unlabeled_images]}
        return json.loads(json.dumps({"split": split, "configuration": configuration}))

    def check(self) -> None:
        """``UserError`` unless there are its plans, its configuration and an unlabeled case."""
        find_plans_file(str(self.dataset.id), self.teacher.plans)
        known = self.dataset.plans(self.teacher.plans).available_configurations
        check_configuration(self.teacher.plans, known, self.teacher.configuration)
        if not self.unlabeled_images:
            raise UserError(
                f"Fold {self.teacher.fold} of {self.dataset} has no unlabeled case: put scans into "
                f'imagesTr_unlabeled, or list cases under "unlabeled" in {self.dataset.splits_file.name}.'
            )


# ---------------------------------------------------------------- pseudo-labels


def _predict(teacher: Model, source: _Source, dataset: Dataset, ignore_uncertain: float | None, device: str) -> Path:
    """The folder with a pseudo-label for each unlabeled case."""
    cases, ending = source.unlabeled_images, source.dataset.json["file_ending"]
    images, predictions, labels = (dataset.raw / name for name in (IMAGES, PREDICTIONS, LABELS))
    link_images(images, cases, ending)
    if without_file(predictions, cases, ending):
        probabilities = ("--save_probabilities",) if ignore_uncertain is not None else ()
        _call(teacher.prediction(images, predictions, device, *probabilities))
        if left := without_file(predictions, cases, ending):
            raise UserError(f"{predictions} lacks the prediction of {left[0]}, though nnUNetv2_predict has ended.")
    if ignore_uncertain is None:
        return predictions
    labels.mkdir(exist_ok=True)
    todo = without_file(labels, cases, ending)
    for case in with_progress(todo, "Pseudo-labels without uncertain voxels", len(todo), "case", print):
        ignore_voxels(predictions, labels, case, source.dataset.json, ignore_uncertain)
    return labels


def ignore_label(dataset_json: dict) -> int:
    """The data set's own, or the next free label, which is where nnU-Net wants it."""
    labels = dataset_json["labels"]
    return labels["ignore"] if "ignore" in labels else 1 + int(max(np.max(value) for value in labels.values()))


def ignore_voxels(predictions: Path, labels: Path, case: str, dataset_json: dict, least: float) -> None:
    """Writes a prediction with the ignore label where it is uncertain; its probabilities, which are large, are removed.

    A voxel is certain when its most probable class has at least the probability `least`; with regions, when each region
    has at least that or at most 1 - `least`.
    """
    ending = dataset_json["file_ending"]
    prediction, probability_file = predictions / f"{case}{ending}", predictions / f"{case}.npz"
    io = determine_reader_writer_from_dataset_json(dataset_json, str(prediction), verbose=False)()
    segmentation, properties = io.read_seg(str(prediction))
    regions = any(isinstance(value, (list, tuple)) for value in dataset_json["labels"].values())
    with np.load(probability_file) as file:
        certain = is_certain(file["probabilities"], least, regions)
    segmentation = np.where(certain, segmentation[0], ignore_label(dataset_json)).astype(np.uint8)
    partial = labels / f"{case}.partial{ending}"
    io.write_seg(segmentation, str(partial), properties)
    os.replace(partial, labels / f"{case}{ending}")
    probability_file.unlink()


def is_certain(probabilities: np.ndarray, least: float, regions: bool) -> np.ndarray:
    """[C, *S] probabilities -> [*S] bool; see `ignore_voxels`."""
    if regions:
        return (np.abs(probabilities - 0.5) >= least - 0.5).all(0)
    return probabilities.max(0) >= least


# ---------------------------------------------------------------- the data set with pseudo-labels


def _check_origin(dataset: Dataset, source: _Source) -> None:
    """``UserError`` when the splits or the configuration have changed since the data set was made."""
    made_of = load_json(str(dataset.raw / RECORD))["made_of"]
    if differing := [key for key, value in source.made_of.items() if made_of.get(key) != value]:
        raise UserError(
            f"{dataset} was made of another {' and another '.join(differing)} of {source.dataset} than there is now. "
            "Undo the change, or delete that data set from nnU-Net's three folders."
        )


def _claim(student: Student, source: _Source, first_id: int | None) -> Model:
    """Takes a free number for a new data set and writes what it is made of; returns what is trained on it."""
    with acquire(Path(nnUNet_raw, ".nnunet_dvcl_selftrain.lock"), patience=math.inf):
        roots = (nnUNet_raw, nnUNet_preprocessed, nnUNet_results)
        names = [path.name for root in roots for path in Path(root).glob("Dataset*")]
        used = {int(name[7:10]) for name in names if re.match(r"Dataset\d{3}_", name)}
        start = first_id if first_id is not None else max(used) + 1
        number = next((number for number in range(start, LAST_ID + 1) if number not in used), None)
        if number is None:
            raise UserError(f"No data set number from {start} to {LAST_ID} is free: name a lower one with --to.")
        name = f"Dataset{number:03d}_{source.dataset.name[len('Dataset000_') :]}_SelfTrain{student.round}"
        folder = Path(nnUNet_raw, name)
        folder.mkdir(parents=True)
        write_json({"student": asdict(student), "made_of": source.made_of}, str(folder / RECORD))
    return student.trained_on(name)


def _make_dataset(source: _Source, dataset: Dataset, pseudo_labels: Path, ignore_uncertain: float | None) -> None:
    """Lists images and labels where they are, without a copy; same plans; the same cases validate."""
    origin, split, plans = source.dataset, source.split, source.teacher.plans
    cases = {case: origin.labeled_cases[case] for case in (*split["train"], *split["val"])}
    for case, files in source.unlabeled_images.items():
        cases[case] = {"images": files, "label": str(pseudo_labels / f"{case}{origin.json['file_ending']}")}
    content = {**origin.json, "numTraining": len(cases), "dataset": cases}
    if ignore_uncertain is not None:
        content["labels"] = {**content["labels"], "ignore": ignore_label(origin.json)}
    dataset.preprocessed.mkdir(parents=True, exist_ok=True)
    for folder in (dataset.raw, dataset.preprocessed):
        write_json(content, str(folder / "dataset.json"))
    fingerprint = origin.preprocessed / "dataset_fingerprint.json"
    if fingerprint.is_file():
        shutil.copy(fingerprint, dataset.preprocessed)
    move = ("nnUNetv2_move_plans_between_datasets", "-s", origin.id, "-t", dataset.id, "-sp", plans, "-tp", plans)
    _call(Command(*move))
    configuration = source.teacher.configuration
    if cases.keys() - dataset.preprocessed_cases(dataset.plans(plans), configuration):
        _call(Command("nnUNetv2_preprocess", "-d", dataset.id, "-plans_name", plans, "-c", configuration))
    train = sorted([*split["train"], *source.unlabeled_images])
    write_json([{"train": train, "val": sorted(split["val"])}], str(dataset.splits_file))


# ---------------------------------------------------------------- commands


def _train(model: Model, device: str) -> None:
    """Waits where another process trains the same."""
    waiting = f"Another process trains {model.folder}; waiting for it"
    with locked(lock_of(model.folder), waiting=waiting) as lock:
        if not model.is_trained:
            _call(model.training(device), pass_fds=(lock.fileno(),))


def _call(command: Command, pass_fds: tuple[int, ...] = ()) -> None:
    """On the terminal, and in this process's own group: an experiment that runs it ends all of them at once."""
    print(f"$ {command}", flush=True)
    status = subprocess.run(command.program(), pass_fds=pass_fds, check=False).returncode
    if status:
        raise UserError(f"{command[0]} failed with status {status}. Called again, this command goes on there.")
