"""``checkpoint_latest.pth`` by the clock: no more than half an hour is lost."""

import sys
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dvcl.trainers import nnUNetTrainerCPS, nnUNetTrainerSupervised
from nnunet_dvcl.trainers.base import nnUNetTrainerPlugin


@pytest.fixture
def clock(monkeypatch):
    """``clock[0]``: the time in minutes, for nnU-Net and for us."""
    minutes = [0.0]
    for owner in (nnUNetTrainer, nnUNetTrainerPlugin):
        monkeypatch.setattr(sys.modules[owner.__module__], "time", lambda: 60 * minutes[0])
    return minutes


def epochs_saved(trainer, clock, minutes: float, epochs: int) -> list[int]:
    """After which epochs `checkpoint_latest.pth` is another one; epochs take so many minutes."""
    trainer.logger.plot_progress_png = lambda folder: None  # takes longer than the epoch
    latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
    saved, found = [], None
    for epoch in range(1, epochs + 1):
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train))])
        clock[0] += minutes
        with torch.no_grad():
            trainer.on_validation_epoch_start()
            trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val))])
        trainer.on_epoch_end()
        before, found = found, torch.load(latest, weights_only=False)["current_epoch"] if latest.exists() else None
        if found != before:
            assert found == epoch
            saved.append(epoch)
    return saved


@pytest.mark.parametrize(
    ("minutes", "saved"), [(5, [6, 12]), (10, [3, 6, 9, 12]), (14, list(range(2, 13, 2))), (40, list(range(1, 13)))]
)
def test_another_epoch_would_be_too_much_to_lose(build_trainer, clock, minutes, saved):
    trainer = build_trainer(nnUNetTrainerSupervised, "2d_tiny", num_epochs=50)
    trainer.on_train_start()
    assert epochs_saved(trainer, clock, minutes, epochs=12) == saved


def test_nnunets_own_checkpoints_count(build_trainer, clock):
    trainer = build_trainer(nnUNetTrainerCPS, "2d_tiny", num_epochs=50)
    trainer.on_train_start()
    trainer.save_every = 4
    assert epochs_saved(trainer, clock, 6, epochs=10) == [4, 8]
    assert trainer.save_every == 4


def test_the_last_epoch_has_the_final_checkpoint_instead(build_trainer, clock):
    trainer = build_trainer(nnUNetTrainerSupervised, "2d_tiny", num_epochs=2)
    trainer.on_train_start()
    assert epochs_saved(trainer, clock, 40, epochs=2) == [1]
    trainer.on_train_end()
    assert {file.name for file in Path(trainer.output_folder).glob("*.pth")} == {
        "checkpoint_best.pth",
        "checkpoint_final.pth",
    }
