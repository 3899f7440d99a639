"""Preprocess the unlabeled scans with the plans of the labeled cases: once, in parallel, resumable."""

import os
from dataclasses import dataclass
from os.path import dirname, join

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.configuration import default_num_processes
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from tqdm import tqdm

from nnunet_dvcl.data.folders import DatasetFolders, check_configuration, find_plans_file, raw_root
from nnunet_dvcl.data.images import BadImage, check_images
from nnunet_dvcl.data.manifest import is_current, preprocessing_settings, write_manifest
from nnunet_dvcl.data.messages import bullet_list
from nnunet_dvcl.data.processes import Log, in_processes
from nnunet_dvcl.data.raw import find_unlabeled_images
from nnunet_dvcl.data.splits import check_scans_have_no_label
from nnunet_dvcl.data.storage import HIDDEN_FOLDER, complete_cases, remove_leftovers, save_case
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.files import writing
from nnunet_dvcl.lock import locked


@dataclass(frozen=True)
class ScanPreprocessor:
    """nnU-Net's own preprocessing of an image alone, into ``folder``. Plain attributes: it travels to the workers."""

    folder: str
    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    dataset_json: dict
    dataset_class: type[nnUNetBaseDataset]

    @property
    def settings(self) -> dict:
        return preprocessing_settings(self.plans_manager, self.configuration_manager, self.dataset_class)

    def finished(self) -> set[str]:
        """Scans that are complete in ``folder``, which was made with these plans; else raises as `is_current`."""
        return complete_cases(self.folder, self.dataset_class) if is_current(self.folder, self.settings) else set()

    def __call__(self, identifier: str, image_files: list[str]) -> str | None:
        """Preprocess one scan; returns what is wrong with it (naming the file), or None."""
        plans, configuration = self.plans_manager, self.configuration_manager
        try:
            check_images(image_files, plans.image_reader_writer_class(), self.dataset_json)
            preprocessor = configuration.preprocessor_class(verbose=False)
            data, mask, properties = preprocessor.run_case(image_files, None, plans, configuration, self.dataset_json)
        except BadImage as error:
            return str(error)
        except Exception as error:
            return f"{', '.join(image_files)}: {type(error).__name__}: {error}"
        data = data.astype(np.float32, copy=False)
        patch_size = tuple(configuration.patch_size)
        save_case(self.folder, identifier, data, mask, properties, self.dataset_class, patch_size)
        return None


def preprocess_unlabeled(
    dataset_name_or_id: str,
    configuration: str,
    plans_identifier: str = "nnUNetPlans",
    num_processes: int = default_num_processes,
) -> str:
    """Preprocess ``imagesTr_unlabeled`` of a data set ahead of a training (``nnunet_dvcl preprocess``).

    Returns:
        The folder ``nnUNet_preprocessed/DatasetXXX/<data_identifier>_unlabeled``.

    Raises:
        UserError: data set, plans, configuration or scans are missing, or a scan cannot be used.
    """
    plans_file = find_plans_file(dataset_name_or_id, plans_identifier)
    plans_manager, dataset_json = PlansManager(plans_file), load_json(join(dirname(plans_file), "dataset.json"))
    plans = f"{plans_identifier} of {plans_manager.dataset_name}"
    check_configuration(plans, plans_manager.available_configurations, configuration)
    configuration_manager = plans_manager.get_configuration(configuration)
    folders = DatasetFolders.of(plans_manager, configuration_manager)
    images = find_unlabeled_images(join(raw_root(), plans_manager.dataset_name), dataset_json)
    if not images:
        raise UserError(f"There are no scans to preprocess: put them at {folders.example_image(dataset_json)}.")
    dataset_class = folders.dataset_class()
    check_scans_have_no_label(images, dataset_class.get_identifiers(folders.labeled), folders.images)
    preprocessor = ScanPreprocessor(
        folders.unlabeled, plans_manager, configuration_manager, dataset_json, dataset_class
    )
    preprocess_images(images, preprocessor, num_processes, print)
    return folders.unlabeled


def preprocess_images(
    images: dict[str, list[str]], preprocessor: ScanPreprocessor, num_processes: int, log: Log
) -> None:
    """Preprocess the scans that are not yet complete in the preprocessor's folder.

    A second process that wants the same waits until the first is done. A kill at any moment costs only the scans that
    were being worked on.

    Raises:
        UserError: the folder was made with other plans; scans that cannot be used (all named, the others are kept); a
            worker process died; the folder cannot be written to.
    """
    folder = preprocessor.folder

    def missing() -> dict[str, list[str]]:
        done = preprocessor.finished()
        return {identifier: files for identifier, files in images.items() if identifier not in done}

    # Without the lock first: a finished folder may be on a read-only disk.
    if not missing():
        return
    hidden = join(folder, HIDDEN_FOLDER)
    lock = join(hidden, "lock")
    with writing(folder):
        os.makedirs(hidden, exist_ok=True)
        open(lock, "a").close()
    with locked(lock, log):
        todo = missing()
        if not todo:
            return
        remove_leftovers(folder)
        write_manifest(folder, preprocessor.settings)
        log(f"Preprocessing {len(todo)} of {len(images)} unlabeled scans into {folder}")
        results = in_processes(preprocessor, todo.items(), min(num_processes, len(todo)))
        results = tqdm(results, total=len(todo), desc="Unlabeled scans")
        problems = sorted(problem for problem in results if problem)
    if problems:
        raise UserError(
            f"{len(problems)} unlabeled scan(s) cannot be used; the other {len(images) - len(problems)} are done and "
            f"kept. Mend or remove these and run again:\n{bullet_list(problems)}"
        )
