"""What all runs of an experiment share, made once: preprocessed data, configurations, splits, links to test images."""

import contextlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dvcl.data.folders import check_configuration
from nnunet_dvcl.data.messages import bullet_list
from nnunet_dvcl.data.storage import HIDDEN_FOLDER, write_json
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.files import visible_files
from nnunet_dvcl.lock import locked
from nnunet_dvcl.tools.configure import configure
from nnunet_dvcl.tools.dataset import link_images
from nnunet_dvcl.tools.experiment.experiment_file import IMAGES_TS, KeptSplits
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
    """What the splits of a data set come to."""

    splits: list[dict[str, list[str]]]  # as in splits_final.json
    test: list[str]

    def evaluated(self, run: Run) -> list[str]:
        """On which a run is compared."""
        return self.test or sorted(self.splits[run.split]["val"])


def prepare(place: Workplace) -> Cases:
    """Makes what is missing; a second process that wants the same waits for the first.

    Raises:
        UserError: the data set, the splits or a trainer cannot be used; a command failed.
    """
    for row in place.experiment.rows:
        if row.selftrain is not None:
            refuse_semi_supervised(row.trainer)
        find_trainer_class(row.trainer)
    runs = all_runs(place.experiment)
    place.folder.mkdir(parents=True, exist_ok=True)
    file = place.dataset.preprocessed / HIDDEN_FOLDER / "prepare.lock"  # experiments share plans and preprocessed cases
    with locked(file, waiting=f"Another process prepares an experiment on {place.dataset}; waiting for it ({file})"):
        _plan(place, sorted({run.configuration.base for run in runs}))
        _write_configurations(place, runs)
        _preprocess(place, runs)
        cases = _write_splits(place)
        if place.experiment.patient_pattern:  # or the report would be the first to find a stray
            group_by({case for run in runs for case in cases.evaluated(run)}, place.experiment.patient_pattern)
        _preprocess_unlabeled(place, runs, cases)
        if cases.test and not place.has_own_test:  # nnUNetv2_predict takes a folder
            images = {case: place.dataset.labeled_cases[case]["images"] for case in cases.test}
            link_images(place.test_images, images, place.dataset.json["file_ending"])
    return cases


def read_cases(place: Workplace) -> Cases:
    """The cases of an experiment that was prepared before; ``UserError`` where it was not."""
    file = place.folder / "cases.json"
    if not file.is_file():
        raise UserError(f"{place.experiment.file} was not run yet: nnunet_dvcl experiment run {place.experiment.file}")
    return Cases(**load_json(str(file)))


# ---------------------------------------------------------------- preprocessed data


def _plan(place: Workplace, bases: list[str]) -> None:
    dataset, plans = place.dataset, place.experiment.plans
    plans_file = dataset.plans_file(plans)
    if not plans_file.is_file():
        if plans != "nnUNetPlans":
            raise UserError(
                f"{plans_file} does not exist. Make these plans first, with nnUNetv2_plan_and_preprocess "
                f"-d {dataset.id} and the planner that makes them (-pl), or with -overwrite_plans_name {plans}."
            )
        _call(place, Command("nnUNetv2_plan_and_preprocess", "-d", dataset.id, "-c", *bases), "plan_and_preprocess")
        return
    manager = dataset.plans(plans)
    for base in bases:
        check_configuration(plans, manager.available_configurations, base)
        if manager.get_configuration(base).previous_stage_name is not None:
            raise UserError(f"{base} is the second stage of a cascade, which an experiment does not support yet.")


def _preprocess(place: Workplace, runs: list[Run]) -> None:
    dataset, plans = place.dataset, place.experiment.plans
    manager = dataset.plans(plans)
    configurations = _one_per_folder(manager, runs)
    done = {name: dataset.preprocessed_cases(manager, name) for name in configurations}
    if missing := [name for name in configurations if dataset.labeled_cases.keys() - done[name]]:
        words = ("nnUNetv2_preprocess", "-d", dataset.id, "-plans_name", plans, "-c", *missing)
        _call(place, Command(*words), "preprocess")


def _one_per_folder(manager: PlansManager, runs: list[Run]) -> list[str]:
    """One configuration for each folder of preprocessed cases: nnU-Net would fill it again for each that shares it."""
    names = sorted({_preprocessed_as(manager, run) for run in runs}, reverse=True)
    return sorted({manager.get_configuration(name).data_identifier: name for name in names}.values())


def _preprocessed_as(manager: PlansManager, run: Run) -> str:
    """The configuration whose data a run trains on: its base, or itself where it has data of its own."""
    base, own = run.configuration.base, run.derived_configuration
    of_base, of_own = (manager.get_configuration(name).data_identifier for name in (base, own))
    return base if of_base == of_own else own


def _preprocess_unlabeled(place: Workplace, runs: list[Run], cases: Cases) -> None:
    scans, plans, taking = place.dataset.unlabeled_scans, place.dataset.plans(place.experiment.plans), []
    for run in runs:
        if not is_semi_supervised(run.row.trainer) and run.row.selftrain is None:
            continue
        configuration = plans.get_configuration(run.derived_configuration).configuration
        config_class = find_trainer_class(run.row.trainer).config_class if run.row.selftrain is None else None
        takes_scans = config_class is None or config_class.from_plans(configuration).unlabeled_folder
        if not cases.splits[run.split].get("unlabeled") and not (scans and takes_scans):
            raise UserError(
                f"The run {run.name} has no unlabeled case: all training cases of its split keep their label, and "
                "it takes no scans of imagesTr_unlabeled. Give its entry of trainers the key labeled, with the "
                "amounts that it is for."
            )
        if scans and takes_scans and run.row.selftrain is None:
            taking.append(run)
    if taking:
        configurations = _one_per_folder(plans, taking)
        words = ("preprocess", "-d", place.dataset.id, "-p", place.experiment.plans, "-c", *configurations)
        _call(place, Command("nnunet_dvcl", *words), "preprocess_unlabeled")


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
    with contextlib.redirect_stdout(io.StringIO()):  # it says how to train
        for name, run in {run.derived_configuration: run for run in runs}.items():
            configure(str(place.dataset.id), run.configuration.base, name, place.experiment.plans, run.assignments)


def settings(place: Workplace, run: Run, cases: Cases) -> dict:
    """All of an experiment that a run's result depends on, as JSON holds it."""
    plans = place.dataset.plans(place.experiment.plans)
    configuration = plans.get_configuration(run.derived_configuration).configuration
    split = {key: sorted(names) for key, names in cases.splits[run.split].items()}
    values = {"trainer": run.row.trainer, "split": split, "configuration": configuration}
    if config_class := getattr(find_trainer_class(run.row.trainer), "config_class", None):
        values["ssl"] = config_class.from_plans(configuration).model_dump()  # with what are its defaults today
    if run.row.selftrain is not None:
        values["selftrain"] = run.row.selftrain.model_dump()
    return json.loads(json.dumps(values))


def claim(place: Workplace, run: Run, cases: Cases) -> None:
    """Writes into the run's folder what it is started with; ``UserError`` where there are results of something else."""
    folder = place.home(run)
    if (folder / RECORD).is_file():
        check_record(place, run, cases)
    elif any(folder.glob("checkpoint_*.pth")):
        raise UserError(f"{folder} has results that no experiment has made. Move or delete that folder.")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(settings(place, run, cases), str(folder / RECORD))
    if run.row.selftrain is not None:
        claim(place, run.teacher, cases)


def check_record(place: Workplace, run: Run, cases: Cases) -> None:
    """``UserError`` when a run was made with other cases or values than the experiment has now."""
    folder = place.home(run)
    made_with, wanted = load_json(str(folder / RECORD)), settings(place, run, cases)
    _leave_out_unknown(made_with, wanted)
    if made_with != wanted:
        made, now = _by_key(made_with), _by_key(wanted)
        differing = ", ".join(key for key in now if made.get(key) != now[key]) or "fewer keys"
        raise UserError(
            f"{folder} was trained with other cases or values ({differing}) than the experiment has now. Undo the "
            "change, or move or delete that folder."
        )


def _leave_out_unknown(made_with: dict, wanted: dict) -> None:
    """Of the trainer's values those that only one version of this package has."""
    both = made_with.get("ssl", {}).keys() & wanted.get("ssl", {}).keys()
    for values in (made_with, wanted):
        values["ssl"] = {key: value for key, value in values.get("ssl", {}).items() if key in both}


def _by_key(settings: dict) -> dict:
    """part.key -> value, for parts that have keys."""
    parts = {part: values if isinstance(values, dict) else {"": values} for part, values in settings.items()}
    return {f"{part}.{key}".rstrip("."): value for part, values in parts.items() for key, value in values.items()}


# ---------------------------------------------------------------- splits


def _write_splits(place: Workplace) -> Cases:
    take = _keep if isinstance(place.experiment.splits, KeptSplits) else _write_new
    cases = take(place, place.dataset.splits_file)
    if place.has_own_test:
        cases = Cases(cases.splits, _cases_of_images_ts(place))
    write_json(asdict(cases), str(place.folder / "cases.json"))
    return cases


def _keep(place: Workplace, file: Path) -> Cases:
    if not file.is_file():
        raise UserError(f"{file} does not exist, which splits.keep asks for.")
    folds = load_json(str(file))
    for run in all_runs(place.experiment):
        if run.split >= len(folds):
            raise UserError(f"{file} has {len(folds)} entries, and splits.keep.{run.amount.name} names {run.split}.")
    return Cases(folds, [])


def _write_new(place: Workplace, file: Path) -> Cases:
    cases = _draw(place)
    if file.is_file() and load_json(str(file)) != cases.splits:
        raise UserError(
            f"{file} is there and holds other splits than the experiment draws. It is not replaced: move it "
            "away (a training needs it to go on), or use its folds with splits.keep."
        )
    if cases.test:
        write_json(cases.test, str(file.with_name(TEST_FILE)))
    if not file.is_file():
        write_json(cases.splits, str(file))
    return cases


def _draw(place: Workplace) -> Cases:
    """An entry for each amount and fold; all amounts have the same folds and test cases, and nested labeled cases."""
    options, dataset = place.experiment.splits, place.dataset
    classes = _case_classes(place)
    groups = group_by(classes, options.group_by) if options.group_by else None
    folds = []
    for amount in options.labeled:
        drawn = make_splits(
            classes,
            organ_names(dataset.json),
            labeled=amount.share,
            count=amount.count,
            unlabeled=options.unlabeled if amount.share != 1 else None,
            test=0.0 if place.has_own_test else options.test,
            num_folds=options.num_folds,
            seed=options.seed,
            groups=groups,
            stratify=options.stratify,
        )
        folds += [drawn.folds[fold] for fold in options.use]
    if groups:
        check_scans(dataset.name, dataset.json, options.group_by, groups, Splits(folds, drawn.test))
    return Cases(folds, drawn.test)


def _case_classes(place: Workplace) -> dict[str, list[str]]:
    """Reading all labels takes minutes on a large data set: done once."""
    file, cases = place.folder / "case_classes.json", place.dataset.labeled_cases
    classes = load_json(str(file)) if file.is_file() else {}
    if classes.keys() != cases.keys():
        classes = read_case_classes({case: files["label"] for case, files in cases.items()}, place.dataset.json)
        write_json(classes, str(file))
    return classes


def _cases_of_images_ts(place: Workplace) -> list[str]:
    ending = place.dataset.json["file_ending"]
    labels = {name.removesuffix(ending) for name in visible_files(place.truth) if name.endswith(ending)}
    if not labels:
        raise UserError(f"{place.truth} has no labels (*{ending}), which splits.test: {IMAGES_TS} asks for.")
    if missing := [case for case in sorted(labels) if not (place.test_images / f"{case}_0000{ending}").is_file()]:
        raise UserError(f"These cases of {place.truth} have no image in imagesTs:\n{bullet_list(missing)}")
    return sorted(labels)
