"""All unlabeled cases of a training run: found, checked, preprocessed once, ready to load."""

from os.path import isdir

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_dvcl.data.folders import DatasetFolders
from nnunet_dvcl.data.preprocess import ScanPreprocessor, preprocess_images
from nnunet_dvcl.data.processes import Log
from nnunet_dvcl.data.raw import find_unlabeled_images
from nnunet_dvcl.data.splits import check_scans_have_no_label, withheld_cases
from nnunet_dvcl.data.unlabeled_dataset import UnlabeledDataset
from nnunet_dvcl.errors import UserError


def get_unlabeled_dataset(
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: dict,
    fold: int | str,
    num_processes: int,
    log: Log,
    use_folder: bool = True,
    folder_with_segs_from_previous_stage: str | None = None,
) -> UnlabeledDataset:
    """The unlabeled cases of a fold from both sources: ``imagesTr_unlabeled`` and the fold's ``"unlabeled"`` cases.

    Scans that are not yet preprocessed are preprocessed first. Without ``imagesTr_unlabeled`` (a machine that holds
    only preprocessed data) the scans that were preprocessed before are used. With `use_folder` False there are only the
    split's. A cascade names the folder with the segmentations of its previous stage, which this function does not look
    into.

    Raises:
        UserError: there is no unlabeled case (says how to provide one), or one of them cannot be used.
    """
    folders = DatasetFolders.of(plans_manager, configuration_manager)
    dataset_class = folders.dataset_class()
    labeled = set(dataset_class.get_identifiers(folders.labeled))
    withheld = withheld_cases(folders.splits_file, fold, labeled)
    preprocessor = ScanPreprocessor(
        folders.unlabeled, plans_manager, configuration_manager, dataset_json, dataset_class
    )
    if not use_folder:
        scans = []
    elif isdir(folders.images):
        images = find_unlabeled_images(folders.raw, dataset_json)
        check_scans_have_no_label(images, labeled, folders.images)
        preprocess_images(images, preprocessor, num_processes, log)
        scans = sorted(images)
    else:
        scans = sorted(preprocessor.finished())
        if scans:
            found = f"the {len(scans)} scans preprocessed before, in {folders.unlabeled}"
            log(f"{folders.images} is not there: using {found}")
        check_scans_have_no_label(scans, labeled, folders.unlabeled)
    if not scans and not withheld:
        hint = "" if use_folder else "ssl.unlabeled_folder is false, so the scans of imagesTr_unlabeled do not count. "
        raise UserError(hint + _no_unlabeled_case(folders, dataset_json, fold, sorted(labeled)))
    log(f"Unlabeled cases: {len(scans)} of imagesTr_unlabeled, {len(withheld)} of the split with their labels withheld")
    sources = [(folders.unlabeled, scans), (folders.labeled, withheld)]
    return UnlabeledDataset(
        dataset_class(folder, cases, folder_with_segs_from_previous_stage) for folder, cases in sources if cases
    )


def _no_unlabeled_case(folders: DatasetFolders, dataset_json: dict, fold: int | str, labeled: list[str]) -> str:
    example = ", ".join(f'"{case}"' for case in labeled[:2])
    where = "a numbered fold (fold all uses every label)" if fold == "all" else f"fold {fold}"
    return (
        f"There is no unlabeled case to train fold {fold} with. Provide some in one of two ways, or both:\n"
        f"  1. Scans without labels: put them at {folders.example_image(dataset_json)}\n"
        f"     They are preprocessed when the training starts.\n"
        f"  2. Labeled cases whose labels are withheld: in {folders.splits_file} move cases of {where} from "
        f'"train" to a third list:\n'
        f'     {{"train": [...], "val": [...], "unlabeled": [{example}]}}\n'
        f"To train on the labeled cases alone, use nnU-Net's own nnUNetTrainer."
    )
