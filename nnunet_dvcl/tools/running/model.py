"""What nnU-Net trains of a fold, and the commands that train it and predict with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id

from nnunet_dvcl.tools.running.command import Command
from nnunet_dvcl.tools.running.progress import CHECKPOINT, is_trained


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
        model = f"{self.trainer}__{self.plans}__{self.configuration}"
        return Path(nnUNet_results, self.dataset, model, f"fold_{self.fold}")

    @property
    def lock(self) -> Path:
        """Beside the folder, so that nobody trains it twice at once."""
        return self.folder.with_name(f"{self.folder.name}.lock")

    @property
    def is_trained(self) -> bool:
        return is_trained(self.folder)

    @property
    def options(self) -> tuple[object, ...]:
        """As nnU-Net's commands take them."""
        options = ("-d", convert_dataset_name_to_id(self.dataset), "-c", self.configuration, "-f", self.fold)
        return (*options, "-tr", self.trainer, "-p", self.plans)

    def training(self, device: str, *options: str) -> Command:
        """``nnUNetv2_train``; `device` as it takes it."""
        words = (convert_dataset_name_to_id(self.dataset), self.configuration, self.fold)
        return Command("nnUNetv2_train", *words, "-tr", self.trainer, "-p", self.plans, "-device", device, *options)

    def prediction(self, images: Path, predictions: Path, device: str, *options: str) -> Command:
        """``nnUNetv2_predict`` with the checkpoint of the last epoch, for what is not predicted yet."""
        words = ("nnUNetv2_predict", "-i", images, "-o", predictions, *self.options, "-chk", CHECKPOINT)
        return Command(*words, "-device", device, "--continue_prediction", *options)
