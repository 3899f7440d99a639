"""Preprocess the unlabeled scans with the plans of the labeled cases: once, in parallel, resumable."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from os.path import basename, dirname, isdir, isfile, join

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.configuration import default_num_processes
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from pandas import json_normalize

from nnunet_dvcl.data.folders import DatasetFolders, check_configuration, find_plans_file, labeled_cases, raw_root
from nnunet_dvcl.data.messages import bullet_list
from nnunet_dvcl.data.processes import Log, in_processes
from nnunet_dvcl.data.raw import CONSTANT, check_images, find_unlabeled_images
from nnunet_dvcl.data.splits import check_scans_have_no_label
from nnunet_dvcl.data.storage import HIDDEN_FOLDER, complete_cases, remove_leftovers, save_case, write_json
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.files import visible_files, writing
from nnunet_dvcl.lock import locked_where_possible
from nnunet_dvcl.progress import with_progress

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


@dataclass(frozen=True)
class UnlabeledScans:
    """The scans of ``imagesTr_unlabeled`` under one configuration of the plans, and nnU-Net's preprocessing of each.

    It travels to the workers.
    """

    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    dataset_json: dict

    @cached_property
    def folders(self) -> DatasetFolders:
        return DatasetFolders.of(self.plans_manager, self.configuration_manager)

    @cached_property
    def dataset_class(self) -> type[nnUNetBaseDataset]:
        return self.folders.dataset_class()

    @property
    def labeled(self) -> list[str]:
        """The labeled cases beside them."""
        return labeled_cases(self.dataset_class, self.folders.labeled)

    @property
    def settings(self) -> dict:
        """All that decides what a preprocessed scan looks like, as JSON would hold it."""
        plans = self.plans_manager
        settings = {key: self.configuration_manager.configuration.get(key) for key in _CONFIGURATION_KEYS}
        settings |= {
            "transpose_forward": plans.transpose_forward,
            "image_reader_writer": plans.plans["image_reader_writer"],
            "foreground_intensity_properties_per_channel": plans.foreground_intensity_properties_per_channel,
            "dataset_class": self.dataset_class.__name__,
        }
        return json.loads(json.dumps(settings))

    @property
    def manifest(self) -> str:
        """The file that says with which settings the folder was made."""
        return join(self.folders.unlabeled, HIDDEN_FOLDER, "manifest.json")

    @property
    def left_out_file(self) -> str:
        """The file that lists the scans that cannot be used, where the user has chosen to go on without them."""
        return join(self.folders.unlabeled, HIDDEN_FOLDER, "left_out.json")

    def left_out(self, images: dict[str, list[str]]) -> dict[str, dict]:
        """Scan -> its entry in `left_out_file`; a scan whose files have changed since may have been mended."""
        try:
            listed = load_json(self.left_out_file)
        except (FileNotFoundError, ValueError):
            return {}
        return {s: listed[s] for s, files in images.items() if s in listed and listed[s]["files"] == _state(files)}

    def finished(self) -> set[str]:
        """Scans that are preprocessed with these plans.

        Raises:
            UserError: cases are there that were made with other plans (names what differs) or without a manifest.
        """
        folder, settings = self.folders.unlabeled, self.settings
        try:
            made_with = load_json(self.manifest)
        except (FileNotFoundError, ValueError):
            made_with = None
        if made_with == settings:
            return complete_cases(folder, self.dataset_class)
        if not any(name.endswith(".pkl") for name in visible_files(folder)):
            return set()
        if isinstance(made_with, dict):
            problem = f"was preprocessed with other plans:\n{bullet_list(_differences(made_with, settings))}"
        else:
            file = self.manifest
            problem = f"does not say which plans it was made with: {file} is missing or damaged (copied without it?)."
        raise UserError(
            f"{folder} {problem}\nDelete that folder; it is made again from the raw scans, by `nnunet_dvcl preprocess` "
            f"or by the next training run."
        )

    def preprocessed(self, num_processes: int, log: Log, skip_bad: bool = False) -> list[str]:
        """All scans, each preprocessed now or before; where ``imagesTr_unlabeled`` is not, those of before.

        A second process that wants the same waits until the first is done. A kill at any moment costs only the scans
        that were being worked on. With `skip_bad` scans that cannot be used are left out, in this run and in those
        that follow, until their files change.

        Raises:
            UserError: scans that are not named as they should be, or that are labeled; the folder was made with other
                plans; scans that cannot be used (all named, the others are kept); a worker process died; the folder
                cannot be written to.
        """
        folders = self.folders
        if not isdir(folders.images):
            if scans := self.finished():
                found = f"the {len(scans)} scans preprocessed before, in {folders.unlabeled}"
                log(f"{folders.images} is not there: using {found}")
            check_scans_have_no_label(scans, self.labeled, folders.unlabeled)
            return sorted(scans)
        images = find_unlabeled_images(folders.raw, self.dataset_json)
        check_scans_have_no_label(images, self.labeled, folders.images)
        # Without the lock first: a finished folder may be on a read-only disk.
        if self._missing(images):
            self._preprocess(images, num_processes, log, skip_bad)
        left_out = self.left_out(images)
        if left_out:
            log(
                f"WARNING: {len(left_out)} of {len(images)} unlabeled scans cannot be used and are left out; "
                f"{self.left_out_file} lists them:\n{bullet_list(entry['problem'] for entry in left_out.values())}"
            )
        return [scan for scan in images if scan not in left_out]

    def _missing(self, images: dict[str, list[str]]) -> dict[str, list[str]]:
        done = self.finished() | self.left_out(images).keys()
        return {scan: files for scan, files in images.items() if scan not in done}

    def _preprocess(self, images: dict[str, list[str]], num_processes: int, log: Log, skip_bad: bool) -> None:
        folder = self.folders.unlabeled
        lock = join(folder, HIDDEN_FOLDER, "lock")
        with writing(folder):
            os.makedirs(dirname(lock), exist_ok=True)
            open(lock, "a").close()
        with locked_where_possible(lock, log) as alone:
            if not (todo := self._missing(images)):
                return
            if alone:  # else they may be those of a process at work
                remove_leftovers(folder)
            write_json(self.settings, self.manifest)
            log(f"Preprocessing {len(todo)} of {len(images)} unlabeled scans into {folder}")
            results = in_processes(self._preprocess_scan, todo.items(), min(num_processes, len(todo)))
            shown = with_progress(results, "Unlabeled scans", len(todo), "scan", log, leave=True)
            found = sorted(shown, key=lambda result: result[0])
            problems = {scan: problem for scan, problem, _ in found if problem}
            if problems and skip_bad:
                entries = {s: {"problem": problem, "files": _state(images[s])} for s, problem in problems.items()}
                write_json(self.left_out(images) | entries, self.left_out_file)
        if warnings := [warning for *_, warning in found if warning]:
            log(f"WARNING: these scans are used, but are strange:\n{bullet_list(warnings)}")
        if problems and not skip_bad:
            raise UserError(
                f"{len(problems)} unlabeled scan(s) cannot be used; the other {len(images) - len(problems)} are done "
                f"and kept. Mend or remove these and run again, or leave them out (nnunet_dvcl preprocess with "
                f"--skip-bad, or ssl.skip_bad_scans=true):\n{bullet_list(problems.values())}"
            )

    def _preprocess_scan(self, identifier: str, image_files: list[str]) -> tuple[str, str | None, str | None]:
        """Returns the scan, why it cannot be used, and what is strange in it; both name the file."""
        files = ", ".join(image_files)
        plans, configuration = self.plans_manager, self.configuration_manager
        try:
            strange = check_images(image_files, plans.image_reader_writer_class(), self.dataset_json)
            preprocessor = configuration.preprocessor_class(verbose=False)
            data, mask, properties = preprocessor.run_case(image_files, None, plans, configuration, self.dataset_json)
        except UserError as error:
            return identifier, str(error), None
        except Exception as error:
            return identifier, f"{files}: {type(error).__name__}: {error}", None
        if not np.isfinite(data).all():
            problem = f"{files}: NaN or infinite after normalization; its values are too large (or constant)"
            return identifier, problem, None
        data, patch_size = data.astype(np.float32, copy=False), tuple(configuration.patch_size)
        save_case(self.folders.unlabeled, identifier, data, mask, properties, self.dataset_class, patch_size)
        if len(patch_size) == 3 and 1 in properties["shape_before_cropping"]:
            strange.append("a single slice, in a 3d configuration")
        if CONSTANT not in strange and any(np.ptp(channel) == 0 for channel in data):
            strange.append(f"{CONSTANT} after normalization")
        return identifier, None, f"{files}: {'; '.join(strange)}" if strange else None


def _state(files: list[str]) -> dict[str, list[int] | None]:
    """File -> its size [bytes] and the time of its last change [ns]; None where nothing is, as behind a broken link."""
    stats = {file: os.stat(file) if isfile(file) else None for file in files}
    return {basename(file): stat and [stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()}


def _differences(old: dict, new: dict) -> list[str]:
    old, new = (json_normalize(settings).to_dict("records")[0] for settings in (old, new))
    return [
        f"{key}: {old.get(key)} in the folder, {new.get(key)} in the plans"
        for key in sorted(old | new)
        if old.get(key) != new.get(key)
    ]


def preprocess_unlabeled(
    dataset_name_or_id: str,
    configuration: str,
    plans_identifier: str = "nnUNetPlans",
    num_processes: int = default_num_processes,
    skip_bad: bool = False,
) -> str:
    """Preprocess ``imagesTr_unlabeled`` of a data set ahead of a training (``nnunet_dvcl preprocess``).

    With `skip_bad` scans that cannot be used are left out, and listed in a file; see `UnlabeledScans.preprocessed`.

    Returns:
        The folder ``nnUNet_preprocessed/DatasetXXX/<data_identifier>_unlabeled``.

    Raises:
        UserError: data set, plans, configuration or scans are missing, or a scan cannot be used.
    """
    plans_file = find_plans_file(dataset_name_or_id, plans_identifier)
    plans_manager, dataset_json = PlansManager(plans_file), load_json(join(dirname(plans_file), "dataset.json"))
    plans = f"{plans_identifier} of {plans_manager.dataset_name}"
    check_configuration(plans, plans_manager.available_configurations, configuration)
    scans = UnlabeledScans(plans_manager, plans_manager.get_configuration(configuration), dataset_json)
    folders = scans.folders
    raw_root()  # raises where it is not set
    if not (isdir(folders.images) and visible_files(folders.images)):
        raise UserError(
            f"There are no scans to preprocess: put them at {folders.example_image(dataset_json)}."
            f"{folders.misnamed_images()}"
        )
    scans.preprocessed(num_processes, print, skip_bad)
    return folders.unlabeled
