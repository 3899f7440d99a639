"""``nnunet_dvcl selftrain``: offline self-training, with nnU-Net's own commands and trainers.

A network that was trained on the labeled cases predicts the unlabeled ones; another one is trained on both. nnU-Net's
maintainers recommend it where others reach for semi-supervised losses (MIC-DKFZ/nnUNet, issues 2233 and 2338).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunet_dvcl.data.folders import check_configuration
from nnunet_dvcl.data.raw import find_unlabeled_images
from nnunet_dvcl.data.splits import check_scans_have_no_label, withheld_cases
from nnunet_dvcl.data.storage import complete_cases, write_json
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.raw_data import find_dataset, labeled_cases, link_images
from nnunet_dvcl.tools.running.command import Command
from nnunet_dvcl.tools.running.lock import Lock
from nnunet_dvcl.tools.running.progress import is_trained, next_training
from nnunet_dvcl.tools.split.split_dataset import SPLITS_FILE

RECORD = "selftrain.json"
"""In the raw folder of a data set that self-training made: what it was made of."""
IMAGES, PREDICTIONS, LABELS = "imagesPseudo", "predictionsPseudo", "labelsPseudo"
LAST_ID = 999


@dataclass(frozen=True)
class Model:
    """What ``nnUNetv2_train`` makes of a fold.

    Attributes:
        dataset: DatasetXXX_Name.
        fold: number of the entry in its ``splits_final.json``.
    """

    dataset: str
    plans: str
    configuration: str
    fold: int
    trainer: str

    @property
    def folder(self) -> Path:
        model = f"{self.trainer}__{self.plans}__{self.configuration}"
        return Path(nnUNet_results, self.dataset, model, f"fold_{self.fold}")

    @property
    def options(self) -> tuple[object, ...]:
        """As nnU-Net's commands take them."""
        options = ("-d", dataset_id(self.dataset), "-c", self.configuration, "-f", self.fold)
        return (*options, "-tr", self.trainer, "-p", self.plans)


@dataclass(frozen=True)
class Student:
    """A round: the data set that holds its pseudo-labels, made or yet to be made.

    Attributes:
        teacher: that of the first round, which was trained on the labeled cases alone.
        round: from 1.
        ignore_uncertain: voxels whose most probable class has less than this probability get the ignore label; None:
            every voxel keeps its pseudo-label.
    """

    teacher: Model
    round: int
    ignore_uncertain: float | None

    def find(self) -> str | None:
        """Its data set, where there is one."""
        for file in sorted(Path(nnUNet_raw).glob(f"Dataset*/{RECORD}")):
            if load_json(str(file))["student"] == asdict(self):
                return file.parent.name
        return None

    def model(self, dataset: str) -> Model:
        """What is trained on it."""
        return replace(self.teacher, dataset=dataset, fold=0)


def dataset_id(dataset: str) -> int:
    return int(dataset.removeprefix("Dataset")[:3])


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
        dataset_name_or_id, configuration, fold, trainer, plans, device: as for ``nnUNetv2_train``.
        rounds: how often the unlabeled cases are predicted, each time by the network trained last.
        ignore_uncertain: probability, see `Student`.
        first_id: the data sets with pseudo-labels take the free numbers from here on; None: behind all that are there.

    Returns:
        The folder of the last trained fold.

    Raises:
        UserError: no such data set or plans, no unlabeled case, a semi-supervised trainer, a command failed.
    """
    refuse_semi_supervised(trainer)
    teacher = Model(find_dataset(dataset_name_or_id), plans, configuration, fold, trainer)
    source = _Source(teacher)
    source.check()
    _train(teacher, device)
    current = teacher
    for number in range(1, rounds + 1):
        student = Student(teacher, number, ignore_uncertain)
        dataset = student.find() or _claim(student, source, first_id)
        _check_origin(dataset, source)
        print(f"Round {number}: {dataset}", flush=True)
        model = student.model(dataset)
        if not is_trained(model.folder):
            pseudo_labels = _predict(current, source, dataset, ignore_uncertain, device)
            _make_dataset(source, dataset, pseudo_labels, ignore_uncertain)
            _train(model, device)
        current = model
    return current.folder


def refuse_semi_supervised(trainer: str) -> None:
    """``UserError`` for a trainer that needs unlabeled cases of its own."""
    from nnunet_dvcl import trainers

    found = getattr(trainers, trainer, None)
    if found is not None and issubclass(found, trainers.nnUNetTrainerSSL):
        raise UserError(
            f"{trainer} needs unlabeled cases, of which self-training leaves none: take nnUNetTrainer or "
            "nnUNetTrainerSupervised."
        )


# ---------------------------------------------------------------- the data set it starts from


@dataclass(frozen=True)
class _Source:
    """Cases of the fold: labeled ones, unlabeled ones, those to validate on."""

    teacher: Model

    @property
    def raw(self) -> Path:
        return Path(nnUNet_raw, self.teacher.dataset)

    @property
    def preprocessed(self) -> Path:
        return Path(nnUNet_preprocessed, self.teacher.dataset)

    @cached_property
    def dataset_json(self) -> dict:
        return load_json(str(self.raw / "dataset.json"))

    @cached_property
    def labeled(self) -> dict[str, dict]:
        return labeled_cases(self.raw)

    @cached_property
    def split(self) -> dict[str, list[str]]:
        file = self.preprocessed / SPLITS_FILE
        splits = load_json(str(file)) if file.is_file() else []
        if self.teacher.fold >= len(splits):
            raise UserError(f"{file} has no fold {self.teacher.fold}: make the splits first, with nnunet_dvcl split.")
        withheld = withheld_cases(str(file), self.teacher.fold, self.labeled)  # checks the fold too
        return {**splits[self.teacher.fold], "unlabeled": withheld}

    @cached_property
    def unlabeled_images(self) -> dict[str, list[str]]:
        """Case -> its images, one file a channel. No label of them is read."""
        scans = find_unlabeled_images(str(self.raw), self.dataset_json)
        check_scans_have_no_label(scans, self.labeled, str(self.raw / "imagesTr_unlabeled"))
        return {case: self.labeled[case]["images"] for case in self.split["unlabeled"]} | scans

    @cached_property
    def made_of(self) -> dict:
        """All that its students depend on, as JSON holds it."""
        plans = PlansManager(load_json(str(self.preprocessed / f"{self.teacher.plans}.json")))
        configuration = plans.get_configuration(self.teacher.configuration).configuration
        split = {role: sorted(self.split[role]) for role in ("train", "val")} | {"unlabeled": [*self.unlabeled_images]}
        return json.loads(json.dumps({"split": split, "configuration": configuration}))

    def check(self) -> None:
        plans_file = self.preprocessed / f"{self.teacher.plans}.json"
        if not plans_file.is_file():
            raise UserError(
                f"{plans_file} does not exist: run nnUNetv2_plan_and_preprocess -d {dataset_id(self.teacher.dataset)}."
            )
        known = PlansManager(str(plans_file)).available_configurations
        check_configuration(self.teacher.plans, known, self.teacher.configuration)
        if not self.unlabeled_images:
            raise UserError(
                f"Fold {self.teacher.fold} of {self.teacher.dataset} has no unlabeled case: put scans into "
                f'imagesTr_unlabeled, or list cases under "unlabeled" in {SPLITS_FILE}.'
            )


# ---------------------------------------------------------------- pseudo-labels


def _predict(teacher: Model, source: _Source, dataset: str, ignore_uncertain: float | None, device: str) -> Path:
    """The folder with a pseudo-label for each unlabeled case."""
    raw, ending = Path(nnUNet_raw, dataset), source.dataset_json["file_ending"]
    images, predictions, labels = raw / IMAGES, raw / PREDICTIONS, raw / LABELS
    link_images(images, source.unlabeled_images, ending)

    def missing(folder: Path) -> list[str]:
        return [case for case in source.unlabeled_images if not (folder / f"{case}{ending}").is_file()]

    if missing(predictions):
        probabilities = ("--save_probabilities",) if ignore_uncertain is not None else ()
        options = (*teacher.options, "-device", device, "--continue_prediction", *probabilities)
        _call(Command("nnUNetv2_predict", "-i", images, "-o", predictions, *options))
        if left := missing(predictions):
            raise UserError(f"{predictions} lacks the prediction of {left[0]}, though nnUNetv2_predict has ended.")
    if ignore_uncertain is None:
        return predictions
    labels.mkdir(exist_ok=True)
    for case in tqdm(missing(labels), desc="Pseudo-labels without uncertain voxels"):
        ignore_voxels(predictions, labels, case, source.dataset_json, ignore_uncertain)
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
    with np.load(probability_file) as file:
        certain = is_certain(file["probabilities"], least, has_regions(dataset_json))
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


def has_regions(dataset_json: dict) -> bool:
    return any(isinstance(value, (list, tuple)) for value in dataset_json["labels"].values())


# ---------------------------------------------------------------- the data set with pseudo-labels


def _check_origin(dataset: str, source: _Source) -> None:
    """``UserError`` when the splits or the configuration have changed since the data set was made."""
    file = Path(nnUNet_raw, dataset, RECORD)
    made_of = load_json(str(file))["made_of"]
    if differing := [key for key, value in source.made_of.items() if made_of.get(key) != value]:
        raise UserError(
            f"{dataset} was made of another {' and another '.join(differing)} of {source.teacher.dataset} than there "
            "is now. Undo the change, or delete that data set from nnU-Net's three folders."
        )


def _claim(student: Student, source: _Source, first_id: int | None) -> str:
    """Takes a free number for a new data set and writes what it is made of."""
    with Lock.acquire(Path(nnUNet_raw, ".nnunet_dvcl_selftrain.lock"), wait=True):
        used = {dataset_id(name) for name in _dataset_names()}
        start = first_id if first_id is not None else max(used) + 1
        number = next((number for number in range(start, LAST_ID + 1) if number not in used), None)
        if number is None:
            raise UserError(f"No data set number from {start} to {LAST_ID} is free: name a lower one with --to.")
        name = f"Dataset{number:03d}_{student.teacher.dataset[len('Dataset000_') :]}_SelfTrain{student.round}"
        folder = Path(nnUNet_raw, name)
        folder.mkdir(parents=True)
        write_json({"student": asdict(student), "made_of": source.made_of}, str(folder / RECORD))
    return name


def _dataset_names() -> Iterable[str]:
    for root in (nnUNet_raw, nnUNet_preprocessed, nnUNet_results):
        if os.path.isdir(root):
            yield from (name for name in os.listdir(root) if re.match(r"Dataset\d{3}_", name))


def _make_dataset(source: _Source, dataset: str, pseudo_labels: Path, ignore_uncertain: float | None) -> None:
    """Lists images and labels where they are, without a copy; same plans; the same cases validate."""
    raw, preprocessed = Path(nnUNet_raw, dataset), Path(nnUNet_preprocessed, dataset)
    ending, split, teacher = source.dataset_json["file_ending"], source.split, source.teacher
    cases = {case: source.labeled[case] for case in (*split["train"], *split["val"])}
    pseudo = {
        case: {"images": files, "label": str(pseudo_labels / f"{case}{ending}")}
        for case, files in source.unlabeled_images.items()
    }
    everything = {case: _absolute(files, source.raw) for case, files in (cases | pseudo).items()}
    content = {**source.dataset_json, "numTraining": len(everything), "dataset": everything}
    if ignore_uncertain is not None:
        content["labels"] = {**content["labels"], "ignore": ignore_label(source.dataset_json)}
    write_json(content, str(raw / "dataset.json"))
    preprocessed.mkdir(parents=True, exist_ok=True)
    write_json(content, str(preprocessed / "dataset.json"))
    fingerprint = source.preprocessed / "dataset_fingerprint.json"
    if fingerprint.is_file():
        shutil.copy(fingerprint, preprocessed)
    _call(
        Command(
            *("nnUNetv2_move_plans_between_datasets", "-s", dataset_id(teacher.dataset), "-t", dataset_id(dataset)),
            *("-sp", teacher.plans, "-tp", teacher.plans),
        )
    )
    if everything.keys() - _preprocessed(preprocessed, teacher):
        options = ("-plans_name", teacher.plans, "-c", teacher.configuration)
        _call(Command("nnUNetv2_preprocess", "-d", dataset_id(dataset), *options))
    train = sorted([*split["train"], *pseudo])
    write_json([{"train": train, "val": sorted(split["val"])}], str(preprocessed / SPLITS_FILE))


def _absolute(files: dict, raw: Path) -> dict:
    return {
        "images": [os.path.abspath(raw / file) for file in files["images"]],
        "label": os.path.abspath(raw / files["label"]),
    }


def _preprocessed(folder: Path, teacher: Model) -> set[str]:
    manager = PlansManager(str(folder / f"{teacher.plans}.json"))
    data = str(folder / manager.get_configuration(teacher.configuration).data_identifier)
    try:
        return complete_cases(data, infer_dataset_class(data))
    except (OSError, AssertionError, KeyError):  # not there, or nothing in it
        return set()


# ---------------------------------------------------------------- commands


def _train(model: Model, device: str) -> None:
    """Waits where another process trains the same."""
    file = model.folder.with_name(f"{model.folder.name}.lock")
    lock = Lock.acquire(file)
    if lock is None:
        print(f"Another process trains {model.folder}; waiting for it", flush=True)
        lock = Lock.acquire(file, wait=True)
    with lock:
        if (options := next_training(model.folder)) is None:
            return
        words = ("nnUNetv2_train", dataset_id(model.dataset), model.configuration, model.fold)
        command = Command(*words, "-tr", model.trainer, "-p", model.plans, "-device", device, *options)
        _call(command, pass_fds=(lock.descriptor,))


def _call(command: Command, pass_fds: tuple[int, ...] = ()) -> None:
    print(f"$ {command}", flush=True)
    status = subprocess.run(command.program(), pass_fds=pass_fds, check=False).returncode
    if status:
        raise UserError(f"{command[0]} failed with status {status}. Called again, this command goes on there.")
