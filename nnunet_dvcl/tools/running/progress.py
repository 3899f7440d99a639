"""How far nnU-Net has trained a fold, by the files that it writes."""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = "checkpoint_final.pth"
"""Of the last epoch: nothing is selected, on no cases."""
_TO_GO_ON_FROM = ("checkpoint_latest.pth", "checkpoint_best.pth")


def is_trained(fold: Path) -> bool:
    """Trained to the last epoch and validated."""
    return (fold / CHECKPOINT).is_file() and (fold / "validation/summary.json").is_file()


def is_begun(fold: Path) -> bool:
    return any((fold / name).is_file() for name in (CHECKPOINT, *_TO_GO_ON_FROM))


def next_training(fold: Path) -> tuple[str, ...] | None:
    """The options that ``nnUNetv2_train`` needs now; None when there is nothing left to do."""
    if is_trained(fold):
        return None
    if (fold / CHECKPOINT).is_file():
        return ("--val",)
    return ("--c",) if is_begun(fold) else ()
