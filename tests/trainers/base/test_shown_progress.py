"""A training shows how far it is, on the console alone; nnU-Net's log gets one line, how long it takes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dvcl import progress
from nnunet_dvcl.trainers import nnUNetTrainerCPS, nnUNetTrainerSupervised
from nnunet_dvcl.trainers.base import shown_progress
from nnunet_dvcl.trainers.base.shown_progress import Pace


@pytest.fixture
def clock(monkeypatch):
    seconds = [0.0]
    for module in (progress, shown_progress):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    return seconds


def test_the_pace_is_that_of_steps_and_of_what_follows_them(clock):
    pace = Pace(epochs=3, steps=30, validation_batches=10)
    pace.begin_epoch()
    for step in range(30):
        clock[0] += 50 if step < 5 else 2  # compiling counts for nothing
        pace.count_step()
        assert (pace.left is None) == (step < 5)
    assert pace.step == 2
    assert pace.all == pytest.approx(3 * (60 + 20 / 3))
    assert pace.left == pytest.approx(2 * 60 + 3 * 20 / 3)
    clock[0] += 100  # validation, logs, checkpoints
    pace.begin_epoch()
    clock[0] += 2
    pace.count_step()
    assert pace.left == pytest.approx(29 * 2 + 100 + 60 + 100)


@pytest.fixture
def run(build_trainer, clock, monkeypatch):
    """Trains epochs whose steps and validation batches take half a minute each; returns the trainer."""

    def run(trainer_class, rank: int = 0, **ssl):
        def slowly(method):
            def step(self, batch):
                clock[0] += 30
                return method(self, batch)

            return step

        slow = {name: slowly(getattr(trainer_class, name)) for name in ("train_step", "validation_step")}
        trainer = build_trainer(type(trainer_class.__name__, (trainer_class,), slow), "2d_tiny", **ssl)
        trainer.on_train_start()
        trainer.local_rank = rank
        monkeypatch.setattr(trainer, "on_train_start", lambda: None)
        trainer.run_training()
        return trainer

    return run


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerCPS, nnUNetTrainerSupervised])
def test_the_console_shows_steps_and_the_log_how_long_it_takes(run, capsys, trainer_class):
    capsys.readouterr()
    trainer = run(trainer_class, num_iterations_per_epoch=13, num_val_iterations_per_epoch=4)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("Epoch", "Validation"))]
    assert lines[:3] == [
        "Epoch 0: 2/13 [01:00<05:30, 30.00s/step]",
        "Epoch 0: 4/13 [02:00<04:30, 30.00s/step]",
        # two epochs of 13 steps and a third of 4
        "Epoch 0: 6/13 [03:00<03:30, 30.00s/step, training: 11 min left]",
    ]
    assert lines[6:9] == [
        "Validation of epoch 0: 2/4 [01:00<01:00, 30.00s/batch]",
        "Validation of epoch 0: 4/4 [02:00<00:00, 30.00s/batch]",
        # 11 steps, and 4 batches as in the first epoch
        "Epoch 1: 2/13 [01:00<05:30, 30.00s/step, training: 8 min left]",
    ]
    log = Path(trainer.log_file).read_text()
    assert log.count("30 s a step, 2 epochs: about 17 min in all") == log.count(" in all") == 1
    assert "/13" not in log


def test_other_ranks_show_nothing(run, capsys):
    run(nnUNetTrainerSupervised, rank=1, num_iterations_per_epoch=13)
    captured = capsys.readouterr()
    assert "/13" not in captured.err
    assert " in all" not in captured.out


def test_a_training_that_goes_on_tells_of_the_epochs_to_come(run, capsys, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", _as_from_epoch_1(nnUNetTrainer.on_train_start))
    run(nnUNetTrainerSupervised, num_epochs=3, num_iterations_per_epoch=13)
    assert "30 s a step, 2 epochs: about" in capsys.readouterr().out


def _as_from_epoch_1(on_train_start):
    def start(trainer):
        on_train_start(trainer)
        trainer.current_epoch = 1
        for values in trainer.logger.local_logger.my_fantastic_logging.values():
            values.append(0.0)

    return start


def test_the_final_validation_counts_its_cases(start, clock, capsys, monkeypatch):
    trainer = start(nnUNetTrainerSupervised, "2d_tiny")
    before, cases = trainer.dataset_class, [f"case_{number % 6}" for number in range(30)]

    def validate(self, save_probabilities):
        """What nnU-Net does with the data set, and its loop."""
        assert self.do_split()
        dataset = self.dataset_class(self.preprocessed_dataset_folder, cases, folder_with_segs_from_previous_stage=None)
        for number, case in enumerate(dataset.identifiers):
            assert case == cases[number]
            assert len(dataset.load_case(case)) == 4
            clock[0] += 60

    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", validate)
    trainer.perform_actual_validation()
    assert trainer.dataset_class is before
    captured = capsys.readouterr()
    assert "Validation cases: 7/30 [07:00<23:00, 60.00s/case]" in captured.err.splitlines()
    assert "Validation cases: about 30 min in all" in captured.out


def test_no_bar_beyond_a_training(start):
    """``nnunet_dvcl memory`` and the benchmarks take steps of their own."""
    trainer = start(nnUNetTrainerSupervised, "2d_tiny")
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train))])
    with torch.no_grad():
        trainer.validation_step(next(trainer.dataloader_val))
    trainer.train_step(next(trainer.dataloader_train))
