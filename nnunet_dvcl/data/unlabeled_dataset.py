"""All unlabeled cases of a training, from both sources, without anything that a label decides."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os.path import getmtime, join

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetNumpy
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_dvcl.data.folders import DatasetFolders
from nnunet_dvcl.data.preprocess import UnlabeledScans
from nnunet_dvcl.data.processes import Log
from nnunet_dvcl.data.splits import withheld_cases
from nnunet_dvcl.errors import UserError


@contextmanager
def _reading(case: str) -> Iterator[None]:
    """Files that were whole when the training began can be changed or gone by now."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"The files of the preprocessed case {case} cannot be read ({error}). Were they changed or "
            "removed during the training? Delete what is left of the case, preprocess it again (nnunet_dvcl "
            "preprocess; for a case of the split nnUNetv2_preprocess) and go on with --c."
        ) from error


class LazyArray:
    """A stored array (memory map, Blosc2) of which only what is indexed is read.

    That can be written to: nnU-Net's transforms work in place, on a read-only memory map they crash.
    """

    def __init__(self, stored, case: str = "") -> None:
        self._stored = stored
        self._case = case

    @property
    def shape(self) -> tuple[int, ...]:
        return self._stored.shape

    @property
    def dtype(self) -> np.dtype:
        return self._stored.dtype

    def __getitem__(self, key) -> np.ndarray:
        with _reading(self._case):
            return np.require(self._stored[key], requirements="W")


class ImageMask(LazyArray):
    """nnU-Net's stored segmentation, of which only its mask of the image can be seen: 0 inside, -1 outside."""

    def __getitem__(self, key) -> np.ndarray:
        return np.minimum(super().__getitem__(key), 0)


class UnlabeledDataset:
    """What nnU-Net's loader needs of a data set, over several of nnU-Net's data sets.

    A withheld case is stored with its segmentation. Labels are clamped to "inside" and class locations are dropped,
    here and nowhere later, so that no caller can see them. (nnU-Net marks a voxel as outside where the image is zero
    *and* has no label; that a zero background voxel has some label is thus the one thing that still shows, as inside.)
    """

    def __init__(self, sources: Iterable[nnUNetBaseDataset]) -> None:
        self._source = {identifier: source for source in sources for identifier in source.identifiers}
        self.identifiers = sorted(self._source)

    def __len__(self) -> int:
        return len(self.identifiers)

    def load_case(self, identifier: str) -> tuple[LazyArray, ImageMask, np.ndarray | None, dict]:
        """As nnU-Net's dataset classes: data, mask in the place of the segmentation, previous stage, properties.

        Data [channels, *S] float32 and mask [1, *S] are lazy. The segmentation that the previous stage of a cascade has
        predicted, [*S], is None without a cascade. ``properties["class_locations"]`` is None.

        Raises:
            UserError: the files cannot be read, here or when the lazy arrays are.
        """
        source = self._source[identifier]
        case = join(source.source_folder, identifier)
        with _reading(case):
            data, segmentation, previous_stage, properties = source.load_case(identifier)
            if data.shape[1:] != segmentation.shape[1:]:
                raise ValueError(f"the image has shape {data.shape[1:]}, its segmentation {segmentation.shape[1:]}")
        properties = {**properties, "class_locations": None}
        return LazyArray(data, case), ImageMask(segmentation, case), previous_stage, properties

    def written_at(self, identifier: str) -> float:
        """When the case was preprocessed, as the file system has it [s]."""
        return getmtime(join(self._source[identifier].source_folder, f"{identifier}.pkl"))


class NumpyDataset(nnUNetDatasetNumpy):
    """nnU-Net's data set of ``.npz`` files and, once a training has unpacked them, of memory maps; see `LazyArray`."""

    def load_case(self, identifier: str) -> tuple[LazyArray, LazyArray, LazyArray | None, dict]:
        case = join(self.source_folder, identifier)
        *arrays, properties = super().load_case(identifier)
        return *(array if array is None else LazyArray(array, case) for array in arrays), properties


def get_unlabeled_dataset(
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: dict,
    fold: int | str,
    num_processes: int,
    log: Log,
    use_folder: bool = True,
    folder_with_segs_from_previous_stage: str | None = None,
    skip_bad: bool = False,
) -> UnlabeledDataset:
    """The unlabeled cases of a fold: the scans of `UnlabeledScans.preprocessed`, and the split's ``"unlabeled"`` ones.

    Args:
        use_folder: False: the split's alone.
        folder_with_segs_from_previous_stage: of a cascade; this function does not look into it.
        skip_bad: scans that cannot be used are left out; False: they are an error.

    Raises:
        UserError: there is no unlabeled case (says how to provide one), or one of them cannot be used.
    """
    unlabeled_scans = UnlabeledScans(plans_manager, configuration_manager, dataset_json)
    folders, labeled = unlabeled_scans.folders, unlabeled_scans.labeled
    withheld = withheld_cases(folders.splits_file, fold, labeled)
    scans = unlabeled_scans.preprocessed(num_processes, log, skip_bad) if use_folder else []
    if not scans and not withheld:
        hint = "" if use_folder else "ssl.unlabeled_folder is false, so the scans of imagesTr_unlabeled do not count. "
        raise UserError(hint + _no_unlabeled_case(folders, dataset_json, fold, sorted(labeled)))
    if use_folder and not scans and (misnamed := folders.misnamed_images()):
        log(f"WARNING: no scan of imagesTr_unlabeled.{misnamed}")
    log(f"Unlabeled cases: {len(scans)} of imagesTr_unlabeled, {len(withheld)} of the split with their labels withheld")
    sources = [(folders.unlabeled, scans), (folders.labeled, withheld)]
    return UnlabeledDataset(
        unlabeled_scans.dataset_class(folder, cases, folder_with_segs_from_previous_stage)
        for folder, cases in sources
        if cases
    )


def _no_unlabeled_case(folders: DatasetFolders, dataset_json: dict, fold: int | str, labeled: list[str]) -> str:
    example = ", ".join(f'"{case}"' for case in labeled[:2])
    where = "a numbered fold (fold all uses every label)" if fold == "all" else f"fold {fold}"
    return (
        f"There is no unlabeled case to train fold {fold} with. Provide some in one of two ways, or both:\n"
        f"  1. Scans without labels: put them at {folders.example_image(dataset_json)}\n"
        f"     They are preprocessed when the training starts.{folders.misnamed_images()}\n"
        f"  2. Labeled cases whose labels are withheld: in {folders.splits_file} move cases of {where} from "
        f'"train" to a third list:\n'
        f'     {{"train": [...], "val": [...], "unlabeled": [{example}]}}\n'
        f"To train on the labeled cases alone: -tr nnUNetTrainerSupervised."
    )
