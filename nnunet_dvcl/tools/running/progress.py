"""What nnU-Net's commands have finished, by the files that they write."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dvcl.data.storage import complete_cases

CHECKPOINT = "checkpoint_final.pth"
"""Of the last epoch: nothing is selected, on no cases."""
_TO_GO_ON_FROM = ("checkpoint_latest.pth", "checkpoint_best.pth")


def is_trained(fold: Path) -> bool:
    """Trained to the last epoch and validated."""
    return (fold / CHECKPOINT).is_file() and (fold / "validation/summary.json").is_file()


def is_begun(fold: Path) -> bool:
    return any((fold / name).is_file() for name in (CHECKPOINT, *_TO_GO_ON_FROM))


def next_training(fold: Path) -> tuple[str, ...]:
    """The options that ``nnUNetv2_train`` needs now, where a fold is not trained yet."""
    if (fold / CHECKPOINT).is_file():
        return ("--val",)
    return ("--c",) if is_begun(fold) else ()


def preprocessed_cases(preprocessed: Path, plans: PlansManager, configuration: str) -> set[str]:
    """The complete cases of a data set's preprocessed folder."""
    folder = str(preprocessed / plans.get_configuration(configuration).data_identifier)
    try:
        return complete_cases(folder, infer_dataset_class(folder))
    except (OSError, AssertionError, KeyError):  # not there, or nothing in it
        return set()


def without_file(folder: Path, cases: Iterable[str], ending: str) -> list[str]:
    """The cases that have no segmentation in a folder, of predictions for instance."""
    return [case for case in cases if not (folder / f"{case}{ending}").is_file()]
