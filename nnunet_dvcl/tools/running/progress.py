"""A fold that nnU-Net trains: how far it is, by the files that nnU-Net writes, and the commands that it needs."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id
from nnunetv2.utilities.file_path_utilities import get_output_folder

from nnunet_dvcl.tools.model_folders import NEWEST_FIRST
from nnunet_dvcl.tools.running.command import Command

CHECKPOINT = "checkpoint_final.pth"
"""Of the last epoch: nothing is selected, on no cases."""


@dataclass(frozen=True)
class Model:
    """A trained fold, or one to train.

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
        return Path(get_output_folder(self.dataset, self.trainer, self.plans, self.configuration, self.fold))

    @property
    def is_trained(self) -> bool:
        """Trained to the last epoch and validated."""
        return self._has(CHECKPOINT) and self._has("validation/summary.json")

    @property
    def is_begun(self) -> bool:
        return any(map(self._has, NEWEST_FIRST))

    def _has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    @property
    def options(self) -> tuple[object, ...]:
        """As nnU-Net's commands take them."""
        options = ("-d", convert_dataset_name_to_id(self.dataset), "-c", self.configuration, "-f", self.fold)
        return (*options, "-tr", self.trainer, "-p", self.plans)

    def training(self, device: str, *options: str) -> Command:
        """Without `options`, what the fold needs now: it goes on where it was stopped."""
        if not options and self.is_begun:
            options = ("--val",) if self._has(CHECKPOINT) else ("--c",)
        words = (convert_dataset_name_to_id(self.dataset), self.configuration, self.fold)
        return Command("nnUNetv2_train", *words, "-tr", self.trainer, "-p", self.plans, "-device", device, *options)

    def prediction(self, images: Path, predictions: Path, device: str, *options: str) -> Command:
        """With the checkpoint of the last epoch, for what is not predicted yet."""
        words = ("nnUNetv2_predict", "-i", images, "-o", predictions, *self.options, "-chk", CHECKPOINT)
        return Command(*words, "-device", device, "--continue_prediction", *options)


def without_file(folder: Path, cases: Iterable[str], ending: str) -> list[str]:
    """The cases that have no segmentation in a folder, of predictions for instance."""
    return [case for case in cases if not (folder / f"{case}{ending}").is_file()]
