"""A pilot on the tiny data set, with trainings that only leave nnU-Net's traces: what is done, told and not touched."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import read_image, write_image

from nnunet_dvcl.cli import main
from nnunet_dvcl.data import preprocess_unlabeled
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.dataset import Dataset
from nnunet_dvcl.tools.experiment import prepare, runner
from nnunet_dvcl.tools.experiment.experiment_file import read_experiment
from nnunet_dvcl.tools.experiment.runs import RECORD, Workplace, all_runs
from nnunet_dvcl.tools.pilot import run, timing
from nnunet_dvcl.tools.pilot.run import Pilot
from nnunet_dvcl.tools.pilot.schedule import Schedule, Timing
from nnunet_dvcl.tools.running import command as commands
from tests.tools.experiment.conftest import Fakes

WORDS = ("pilot", "-d", "901", "-c", "2d_tiny", "--hours", "1", "--devices", "cpu")
TIMINGS = {"nnUNetTrainerSupervised": Timing(0.2, 1, 10), "nnUNetTrainerDVCL": Timing(0.6, 2, 20)}


@pytest.fixture
def fakes(tmp_path, tiny_dataset, monkeypatch) -> Fakes:
    """Supervised finds nothing, DVCL everything."""
    folder, nothing = tmp_path / "commands", tmp_path / "nothing"
    for made in (folder, nothing):
        made.mkdir()
    for label in tiny_dataset.raw.glob("labelsTr/*"):
        write_image(nothing / label.name, np.zeros_like(read_image(label)))
    fakes = Fakes(folder)
    fakes.let(
        "2d_tiny_pilot_seed0",
        f'from="$nnUNet_raw/Dataset901_Tiny/labelsTr"\nif [ "$5" = nnUNetTrainerSupervised ]; then from={nothing}; fi\n'
        'cp "$from"/* "$fold/validation"',
    )
    monkeypatch.setattr(commands.sysconfig, "get_path", lambda _: os.fspath(folder))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(runner, "_POLL", 0.02)
    monkeypatch.setattr(run, "time_trainers", lambda place: TIMINGS)
    monkeypatch.setattr(prepare, "_call", lambda *command: None)  # all is preprocessed, here, which is quicker
    preprocess_unlabeled("901", "2d", num_processes=1)
    return fakes


def content(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file() and "pilots" not in file.parts}


def keep_cases(tiny, number: int) -> Dataset:
    for case in tiny.labeled[number:]:
        (tiny.raw / f"imagesTr/{case}_0000.nii.gz").unlink()
    return Dataset(tiny.name)


def pilot_of(dataset: Dataset, root: Path, **values) -> Pilot:
    common = {"configuration": "2d_tiny", "plans": "nnUNetPlans", "hours": 1, "trainers": tuple(TIMINGS)}
    return Pilot(dataset, **{**common, "devices": ("cpu",), "group_pattern": None, "root": root, **values})


def test_a_whole_pilot_that_is_stopped_goes_on_and_touches_nothing_of_the_users(fakes, tiny_dataset, capsys):
    tiny_dataset.write_splits({"train": ["case_0"], "val": ["case_1"]})
    before = content(tiny_dataset.root)
    assert main(WORDS) == 0
    output = capsys.readouterr().out
    assert "5 folds x 2 trainers = 10 trainings, 0 finished" in output
    assert (
        "== Take nnUNetTrainerDVCL: against nnUNetTrainerSupervised (mean Dice 0.000) nnUNetTrainerDVCL helps" in output
    )
    assert "better in 6 of 6 cases, p = 0.031" in output
    assert output.endswith("\nnnUNetv2_train 901 2d_tiny 0 -tr nnUNetTrainerDVCL -device cpu\n")
    assert len(fakes.calls) == len(set(fakes.calls)) == 10
    assert content(tiny_dataset.root) == before
    (picture,) = tiny_dataset.results.rglob("pilot.png")
    assert (picture.parent / "report" / "report.md").is_file()
    schedule = (picture.parent / "schedule.json").read_text()

    (done,) = picture.parent.glob("results/*/nnUNetTrainerDVCL__nnUNetPlans__2d_tiny_pilot_seed0/fold_3")
    (done / "validation/summary.json").unlink()
    calls = fakes.calls
    assert main(WORDS) == 0
    assert "10 trainings, 9 finished" in capsys.readouterr().out
    (again,) = fakes.calls[len(calls) :]
    assert again.startswith("train 901 2d_tiny_pilot_seed0 3 -tr nnUNetTrainerDVCL -p nnUNetPlans -device cpu")
    assert (picture.parent / "schedule.json").read_text() == schedule

    assert main([*WORDS[:5], "--hours", "2", "--devices", "cpu"]) == 1
    assert "a pilot with other values (hours)" in capsys.readouterr().err


def test_with_too_little_time_more_can_be_given(fakes, capsys):
    words = [*WORDS[:5], "--devices", "cpu", "--hours"]
    assert main([*words, "0.02"]) == 1
    assert "The time is too short: 10 trainings of 100 steps" in capsys.readouterr().err
    assert main([*words, "2"]) == 0
    assert "So few steps" not in capsys.readouterr().out


def test_hours_that_do_not_hold_the_start_of_the_trainings_are_refused_before_anything(fakes, tiny_dataset, capsys):
    """Two trainings to time and ten of the pilot, five seconds each at least."""
    assert main([*WORDS[:5], "--devices", "cpu", "--hours", "0.016"]) == 1
    assert "--hours 0.016 is too short: 12 trainings" in capsys.readouterr().err
    assert not list(tiny_dataset.results.rglob("*"))
    assert not fakes.calls


def test_few_steps_are_told_with_the_hours_that_enough_of_them_take(fakes, capsys):
    """5 folds of 1000 steps and 20 epochs of both trainers, by their timings: 5 · (230 + 660) s."""
    assert main(WORDS) == 0
    assert "before a difference shows: 1000 take about 1.2 hours" in capsys.readouterr().out


def test_a_training_that_fails_is_told_and_gives_no_verdict(fakes, capsys):
    fakes.let("2d_tiny_pilot_seed0", "echo no memory; exit 3")
    assert main(WORDS) == 1
    captured = capsys.readouterr()
    assert "10 run(s) failed; called again, this command goes on with them" in captured.out
    assert "== Take" not in captured.out


def test_three_cases_are_left_out_one_by_one(tiny_dataset, tmp_path):
    folds = pilot_of(keep_cases(tiny_dataset, 3), tmp_path).folds
    assert sorted(fold["val"] for fold in folds) == [["case_0"], ["case_1"], ["case_2"]]
    for fold in folds:
        assert sorted([*fold["train"], *fold["val"]]) == ["case_0", "case_1", "case_2"]
        assert fold["unlabeled"] == []


def test_one_case_is_too_few(tiny_dataset, tmp_path):
    with pytest.raises(UserError, match=r"has 1 labeled cases, and a pilot needs 2 at least"):
        _ = pilot_of(keep_cases(tiny_dataset, 1), tmp_path).folds


TWO_PATIENTS = "c(?=ase_[012])|case(?=_[345])"  # of three cases


def test_cases_of_a_patient_stay_together(tiny_dataset, tmp_path):
    """The one patient validates while the other trains."""
    folds = pilot_of(Dataset(tiny_dataset.name), tmp_path, group_pattern=TWO_PATIENTS).folds
    assert sorted(fold["val"] for fold in folds) == [["case_0", "case_1", "case_2"], ["case_3", "case_4", "case_5"]]


def test_cases_of_a_patient_count_as_one(fakes, tiny_dataset, capsys):
    """Better in 6 of 6 cases, p = 0.031, would be: in two patients, which is no proof."""
    assert main([*WORDS, "--group-by", TWO_PATIENTS]) == 0
    output = capsys.readouterr().out
    assert "2 folds x 2 trainers = 4 trainings" in output
    assert "== Only a tendency, as no test can tell with fewer than 6 patients: take nnUNetTrainerDVCL" in output
    assert "better in 2 of 2 patients, p = 0.500" in output
    (report,) = tiny_dataset.results.rglob("report.md")
    assert "p (patients)" in report.read_text()


def test_without_unlabeled_scans_there_is_nothing_to_try(tiny_dataset, capsys):
    for scan in tiny_dataset.images.iterdir():
        scan.unlink()
    assert main(WORDS) == 1
    assert "There are no scans in" in capsys.readouterr().err
    assert not list(tiny_dataset.results.rglob("*"))


@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "nnUNetTrainerDVCL_20epochs"])
def test_trainers_of_their_own_length_are_refused(tiny_dataset, trainer, capsys):
    assert main([*WORDS, "--trainers", trainer]) == 1
    assert f"{trainer} has its own length" in capsys.readouterr().err


def test_a_folder_of_something_else_is_not_used(tiny_dataset, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").touch()
    assert main([*WORDS, "-o", str(tmp_path / "mine")]) == 1
    assert "neither empty nor a pilot" in capsys.readouterr().err


def test_what_is_read_from_the_traces_of_a_few_steps(tiny_dataset, tmp_path, monkeypatch):
    """3 epochs of 5 steps: 10 s for the first, then 2 and 3; 4 s between; 100 s in all."""
    pilot = pilot_of(Dataset(tiny_dataset.name), tmp_path, trainers=("nnUNetTrainerSupervised",))
    place = Workplace(read_experiment(pilot._place("timing", timing.FEW_STEPS, [0]).experiment.file))
    (only,) = all_runs(place.experiment)
    home = place.home(only)
    (home / "validation").mkdir(parents=True)
    starts, ends = np.array([1010.0, 1024, 1030]), np.array([1020.0, 1026, 1033])
    keys = ("network_weights", "trainer_name", "init_args", "current_epoch", "_best_ema")
    logging = {"epoch_start_timestamps": starts.tolist(), "epoch_end_timestamps": ends.tolist()}
    torch.save({**dict.fromkeys(keys), "logging": logging}, home / "checkpoint_final.pth")
    for name, moment in ((RECORD, 1000), ("validation/summary.json", 1100)):
        (home / name).touch()
        os.utime(home / name, (moment, moment))
    monkeypatch.setattr(timing, "run_experiment", lambda place: 0)
    (measured,) = timing.time_trainers(place).values()
    assert measured == Timing(step=0.6, epoch=4, run=pytest.approx(100 - 3 * 4 - 15 * 0.6))
    assert measured.training(Schedule(3, 5, 1)) == pytest.approx(100)


def test_timings_that_were_stopped_are_done_again(tiny_dataset, tmp_path, monkeypatch):
    pilot = pilot_of(Dataset(tiny_dataset.name), tmp_path)
    place = pilot._place("timing", timing.FEW_STEPS, [0])
    half_done = place.home(all_runs(place.experiment)[0])
    half_done.mkdir(parents=True)
    (half_done / "checkpoint_latest.pth").touch()
    monkeypatch.setattr(timing, "run_experiment", lambda place: 1)
    assert timing.time_trainers(place) is None
    assert not half_done.exists()
