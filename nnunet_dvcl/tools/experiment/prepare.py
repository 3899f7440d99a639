"""What all runs of an experiment share, made once: preprocessed data, configurations, splits, links to test images."""

import contextlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunet_dvcl import trainers
from nnunet_dvcl.data.folders import check_configuration
from nnunet_dvcl.data.messages import bullet_list
from nnunet_dvcl.data.storage import write_json
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.lock import locked
from nnunet_dvcl.tools.configure import configure
from nnunet_dvcl.tools.dataset import link_images
from nnunet_dvcl.tools.experiment.experiment_file import IMAGES_TS, KeptSplits, Row
from nnunet_dvcl.tools.experiment.runs import RECORD, Run, Workplace, all_runs
from nnunet_dvcl.tools.model_folders import organ_names
from nnunet_dvcl.tools.running.command import Command, environment
from nnunet_dvcl.tools.running.process import call, log_of
from nnunet_dvcl.tools.selftrain import is_semi_supervised, refuse_semi_supervised
from nnunet_dvcl.tools.split.draw import Splits, group_by, make_splits
from nnunet_dvcl.tools.split.split_dataset import TEST_FILE, check_scans, read_case_classes
from nnunet_dvcl.tools.trainer_classes import find_trainer_class


@dataclass(frozen=True)
class Cases:
    """What the splits of a data set come to.

    Attributes:
        splits: the entries of ``splits_final.json``.
        test: identifiers of the test cases.
    """

    splits: list[dict[str, list[str]]]
    test: list[str]

    def evaluated(self, run: Run) -> list[str]:
        """On which a run is compared."""
        return self.test or sorted(self.splits[run.split]["val"])


def prepare(place: Workplace) -> Cases:
    """Makes what is missing; a second process that wants the same waits for the first.

    Raises:
        UserError: the data set, the splits or a trainer cannot be used; a command failed.
    """
    runs = all_runs(place.experiment)
    _check_trainers(place.experiment.rows)
    file = place.folder / "prepare.lock"
    with locked(file, waiting=f"Another process prepares this experiment; waiting for it ({file})"):
        _preprocess(place, sorted({run.configuration.base for run in runs}))
        _write_configurations(place, runs)
        cases = _write_splits(place)
        _preprocess_unlabeled(place, runs, cases)
        _link_test_images(place, cases)
    return cases


def read_cases(place: Workplace) -> Cases:
    """The cases of an experiment that was prepared before.

    Raises:
        UserError: it was not.
    """
    file = place.folder / "cases.json"
    if not file.is_file():
        raise UserError(f"{place.experiment.file} was not run yet: nnunet_dvcl experiment run {place.experiment.file}")
    return Cases(**load_json(str(file)))


# ---------------------------------------------------------------- trainers


def _check_trainers(rows: Iterable[Row]) -> None:
    """``UserError`` for a trainer that nnU-Net does not find, or that self-training cannot have."""
    for row in rows:
        name = row.trainer
        find_trainer_class(name)
        if row.selftrain is not None:
            refuse_semi_supervised(name)


def is_ours(trainer: str) -> bool:
    """Whether it is one of this package's, which can be seeded."""
    return hasattr(trainers, trainer)


def uses_folder(run: Run) -> bool:
    """Whether it takes the scans of ``imagesTr_unlabeled``."""
    values = dict([*run.configuration.values, *run.row.values])
    asks = is_semi_supervised(run.row.trainer) and values.get("ssl.unlabeled_folder") != "false"
    return asks or run.row.selftrain is not None


# ---------------------------------------------------------------- preprocessed data


def _preprocess(place: Workplace, bases: list[str]) -> None:
    dataset, plans = place.dataset, place.experiment.plans
    plans_file = dataset.plans_file(plans)
    if not plans_file.is_file():
        if plans != "nnUNetPlans":
            raise UserError(
                f"{plans_file} does not exist. Make these plans first, with nnUNetv2_plan_and_preprocess "
                f"-d {dataset.id} and its option -pl."
            )
        _call(place, Command("nnUNetv2_plan_and_preprocess", "-d", dataset.id, "-c", *bases), "plan_and_preprocess")
        return
    manager = dataset.plans(plans)
    for base in bases:
        check_configuration(plans, manager.available_configurations, base)
        if manager.get_configuration(base).previous_stage_name is not None:
            raise UserError(f"{base} is the second stage of a cascade, which an experiment does not support yet.")
    done = {base: dataset.preprocessed_cases(manager, base) for base in bases}
    if missing := [base for base in bases if dataset.labeled_cases.keys() - done[base]]:
        words = ("nnUNetv2_preprocess", "-d", dataset.id, "-plans_name", plans, "-c", *missing)
        _call(place, Command(*words), "preprocess")


def _preprocess_unlabeled(place: Workplace, runs: list[Run], cases: Cases) -> None:
    scans = place.dataset.unlabeled_scans
    for run in runs:
        needs = is_semi_supervised(run.row.trainer) or run.row.selftrain is not None
        if needs and not cases.splits[run.split].get("unlabeled") and not (scans and uses_folder(run)):
            raise UserError(
                f"The run {run.name} has no unlabeled case: all training cases of its split keep their label, and "
                "it takes no scans of imagesTr_unlabeled. Give its entry of trainers the key labeled, with the "
                "amounts that it is for."
            )
    bases = sorted({run.configuration.base for run in runs if run.row.selftrain is None and uses_folder(run)})
    if scans and bases:
        words = ("nnunet_dvcl", "preprocess", "-d", place.dataset.id, "-p", place.experiment.plans, "-c", *bases)
        _call(place, Command(*words), "preprocess_unlabeled")


def _call(place: Workplace, command: Command, name: str) -> None:
    """One command, on the terminal and in a log."""
    file = place.folder / "logs" / f"{name}.log"
    print(f"$ {command}\n  log: {file}", flush=True)
    variables = environment(place.experiment.environment)
    if variables.get("nnUNet_n_proc_DA") == "0":  # nnU-Net's planner cannot do with 0 workers
        del variables["nnUNet_n_proc_DA"]
    with log_of(command, file) as log:
        call(command, variables, log)


# ---------------------------------------------------------------- configurations


def _write_configurations(place: Workplace, runs: list[Run]) -> None:
    firsts: dict[str, Run] = {}
    for run in runs:
        firsts.setdefault(run.derived_configuration, run)
    with contextlib.redirect_stdout(io.StringIO()):  # it says how to train
        for name, run in firsts.items():
            configure(str(place.dataset.id), run.configuration.base, name, place.experiment.plans, run.assignments)


def settings(place: Workplace, run: Run, cases: Cases) -> dict:
    """All of an experiment that a run's result depends on, as JSON holds it."""
    plans = place.dataset.plans(place.experiment.plans)
    configuration = plans.get_configuration(run.derived_configuration).configuration
    split = {key: sorted(names) for key, names in cases.splits[run.split].items()}
    own = {} if run.row.selftrain is None else {"selftrain": run.row.selftrain.model_dump()}
    return json.loads(json.dumps({"trainer": run.row.trainer, "split": split, "configuration": configuration, **own}))


def claim(place: Workplace, run: Run, cases: Cases) -> None:
    """Writes into the run's folder what the run is started with.

    Raises:
        UserError: there are results that were made with something else.
    """
    folder = place.home(run)
    wanted, file = settings(place, run, cases), folder / RECORD
    if not file.is_file():
        if any(folder.glob("checkpoint_*.pth")):
            raise UserError(f"{folder} has results that no experiment has made. Move or delete that folder.")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(wanted, str(file))
    else:
        check_record(file, wanted)
    if run.row.selftrain is not None:
        claim(place, run.teacher, cases)


def check_record(file: Path, wanted: dict) -> None:
    """``UserError`` when a run was made with other cases or values than the experiment has now."""
    made_with = load_json(str(file))
    if made_with != wanted:
        made, now = _by_key(made_with), _by_key(wanted)
        differing = ", ".join(key for key in now if made.get(key) != now[key]) or "fewer keys"
        raise UserError(
            f"{file.parent} was trained with other cases or values ({differing}) than the experiment has now. Undo the "
            "change, or move or delete that folder."
        )


def _by_key(settings: dict) -> dict:
    """Part -> value, and part.key -> value for a part that has keys."""
    nested = {part: values for part, values in settings.items() if isinstance(values, dict)}
    flat = {part: value for part, value in settings.items() if part not in nested}
    return flat | {f"{part}.{key}": value for part, values in nested.items() for key, value in values.items()}


# ---------------------------------------------------------------- splits


def _write_splits(place: Workplace) -> Cases:
    splits_file, experiment = place.dataset.splits_file, place.experiment
    if isinstance(experiment.splits, KeptSplits):
        if not splits_file.is_file():
            raise UserError(f"{splits_file} does not exist, which splits.keep asks for.")
        folds, test = load_json(str(splits_file)), []
        for run in all_runs(experiment):
            if run.split >= len(folds):
                amount = f"splits.keep.{run.amount.name}"
                raise UserError(f"{splits_file} has {len(folds)} entries, and {amount} names {run.split}.")
    else:
        folds, test = _draw(place)
        if splits_file.is_file() and load_json(str(splits_file)) != folds:
            raise UserError(
                f"{splits_file} is there and holds other splits than the experiment draws. It is not replaced: move it "
                "away (a training needs it to go on), or use its folds with splits.keep."
            )
        if test:
            write_json(test, str(place.preprocessed / TEST_FILE))
        if not splits_file.is_file():
            write_json(folds, str(splits_file))
    if experiment.splits.test == IMAGES_TS:
        test = _cases_of_images_ts(place)
    cases = Cases(folds, test)
    write_json({"splits": folds, "test": test}, str(place.folder / "cases.json"))
    return cases


def _draw(place: Workplace) -> tuple[list[dict[str, list[str]]], list[str]]:
    """The entries of ``splits_final.json``, one for each amount and fold, and the test cases.

    Folds and test cases are the same for each amount, and the labeled cases are nested.
    """
    options = place.experiment.splits
    dataset_json = place.dataset_json
    segmentations = {case: files["label"] for case, files in place.dataset.labeled_cases.items()}
    classes = _case_classes(place, segmentations, dataset_json)
    groups = group_by(segmentations, options.group_by) if options.group_by else None
    folds = []
    for amount in options.labeled:
        drawn = make_splits(
            classes,
            organ_names(dataset_json),
            labeled=amount.share,
            count=amount.count,
            unlabeled=options.unlabeled if amount.share != 1 else None,
            test=0.0 if options.test == IMAGES_TS else options.test,
            num_folds=options.num_folds,
            seed=options.seed,
            groups=groups,
            stratify=options.stratify,
        )
        folds += [drawn.folds[fold] for fold in options.use]
    if groups:
        check_scans(place.dataset.name, dataset_json, options.group_by, groups, Splits(folds, drawn.test))
    return folds, drawn.test


def _case_classes(place: Workplace, segmentations: dict[str, str], dataset_json: dict) -> dict[str, list[str]]:
    """Reading all labels takes minutes on a large data set: done once."""
    file = place.folder / "case_classes.json"
    if file.is_file():
        classes = load_json(str(file))
        if classes.keys() == segmentations.keys():
            return classes
    classes = read_case_classes(segmentations, dataset_json)
    write_json(classes, str(file))
    return classes


# ---------------------------------------------------------------- test cases


def _cases_of_images_ts(place: Workplace) -> list[str]:
    ending = place.dataset_json["file_ending"]
    labels = {file.name.removesuffix(ending) for file in place.test_labels.glob(f"*{ending}")}
    images = {file.name.removesuffix(f"_0000{ending}") for file in place.test_images.glob(f"*_0000{ending}")}
    if not labels:
        raise UserError(f"{place.test_labels} has no labels (*{ending}), which splits.test: {IMAGES_TS} asks for.")
    if missing := sorted(labels - images):
        raise UserError(f"These cases of {place.test_labels} have no image in imagesTs:\n{bullet_list(missing)}")
    return sorted(labels)


def _link_test_images(place: Workplace, cases: Cases) -> None:
    """nnUNetv2_predict takes a folder: one with links to the images of the test cases, which are among the labeled."""
    if not cases.test or place.experiment.splits.test == IMAGES_TS:
        return
    images = {case: place.dataset.labeled_cases[case]["images"] for case in cases.test}
    link_images(place.test_images, images, place.dataset_json["file_ending"])
