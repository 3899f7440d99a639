"""The demo's commands: skipping, failures, folders; its three trainings; and, quickly, nnU-Net's own commands."""

import csv
import json
import os
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from nnunet_dvcl.cli import main
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.demo.phantom import ORGANS
from nnunet_dvcl.tools.demo.run import DATASET_NAME, DVCL, QUICK, SAME_TIME, SUPERVISED, Runner, Size, _claim, run_demo


def test_a_finished_step_is_skipped(tmp_path, capsys):
    calls = []
    for _ in range(2):
        Runner(tmp_path).step("a", "Step A", lambda: calls.append(1))
    assert calls == [1]
    assert "skipped" in capsys.readouterr().out


def test_a_failed_step_is_done_again(tmp_path):
    runner = Runner(tmp_path)
    with pytest.raises(UserError):
        runner.command("a", "Step A", Path(sys.executable), "-c", "raise SystemExit(3)")
    runner.command("a", "Step A", Path(sys.executable), "-c", "pass")
    assert (tmp_path / "logs/a.done").exists()


def test_a_failure_shows_the_last_lines_and_the_log(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    code = "print('first'); [print('line', i) for i in range(40)]; raise SystemExit('out of disk')"
    with pytest.raises(UserError) as error:
        Runner(tmp_path).command("a", "Step A", sys.executable, "-c", code)
    message = str(error.value)
    assert "status 1" in message
    assert "out of disk" in message
    assert "first" not in message
    assert str(tmp_path / "logs/a.log") in message
    assert "first" in (tmp_path / "logs/a.log").read_text()


def test_a_missing_command_says_how_to_mend_it(tmp_path):
    with pytest.raises(UserError, match="nnunet_no_such_command was not found"):
        Runner(tmp_path).command("a", "Step A", "nnunet_no_such_command")


def test_commands_see_the_demos_folders_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", "/elsewhere")
    code = "import os; print(os.environ['nnUNet_raw'], os.environ['nnUNet_n_proc_DA'])"
    Runner(tmp_path).command("a", "Step A", sys.executable, "-c", code, nnUNet_n_proc_DA="0")
    assert (tmp_path / "logs/a.log").read_text() == f"{tmp_path / 'raw'} 0\n"
    assert os.environ["nnUNet_raw"] == "/elsewhere"


def test_epochs_are_shown_as_they_come_and_how_long_all_take(tmp_path, capsys):
    lines = [
        "Epoch 7",
        "Current learning rate: 0.01",
        "0.5 s a step, 9 epochs: about 7 min in all",
        "Epoch time: 1.2 s",
    ]
    code = f"for line in {lines}: print('2024-01-01 00:00:00.000:', line, '')"
    Runner(tmp_path).command("a", "Step A", sys.executable, "-c", code)
    shown = capsys.readouterr().out
    assert "   Epoch 7\n   0.5 s a step, 9 epochs: about 7 min in all\n" in shown
    assert "   Epoch time" not in shown


def test_claim_takes_a_new_folder_and_its_own_again(tmp_path):
    for _ in range(2):
        _claim(tmp_path / "new", QUICK)


def test_claim_refuses_a_demo_of_another_size(tmp_path):
    _claim(tmp_path, QUICK)
    with pytest.raises(UserError, match="another size"):
        _claim(tmp_path, Size())


def test_claim_refuses_someone_elses_folder(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UserError, match="neither empty nor an earlier demo"):
        _claim(tmp_path, QUICK)


def write_times(runner: Runner, trainer: str, configuration: str, *logs: list[float]) -> None:
    """Log files of a training, each with the times of some epochs in seconds."""
    folder = Path(runner.folders["nnUNet_results"], DATASET_NAME, f"{trainer}__nnUNetPlans__{configuration}/fold_all")
    folder.mkdir(parents=True)
    for i, times in enumerate(logs):
        lines = (f"2026-01-01 00:00:00.000000: Epoch time: {time} s \n" for time in times)
        (folder / f"training_log_{i}.txt").write_text("".join(lines))


def test_the_time_of_an_epoch_is_the_mean_of_all_log_files(tmp_path):
    """A training that was resumed has several."""
    runner = Runner(tmp_path)
    write_times(runner, DVCL.trainer, DVCL.configuration, [2.0, 3.0], [10.0])
    assert DVCL.epoch_time(Path(runner.folders["nnUNet_results"])) == 5.0


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """The commands that would be run. Predictions are the truth; their Dice and how long epochs take is made up."""
    lines = []

    def run_nothing(runner: Runner, name: str, title: str, *words: object, **variables: str) -> None:
        lines.append([str(word) for word in words])
        options = dict(pairwise(words))
        if name.startswith("train"):
            write_times(runner, options["-tr"], words[2], [12.0 if options["-tr"] == DVCL.trainer else 3.0])
        elif name.startswith("predict"):
            shutil.copytree(options["-i"].parent / "labelsTs", options["-o"])
        elif name.startswith("evaluate"):
            dice = {SUPERVISED.name: 0.5, DVCL.name: 0.75, SAME_TIME.name: 0.875}[words[2].name]
            summary = {"mean": {label: {"Dice": dice} for label in ORGANS.values()}}
            (words[2] / "summary.json").write_text(json.dumps(summary))

    monkeypatch.setattr(Runner, "command", run_nothing)
    return lines


def test_both_comparisons_come_out_as_they_are(tmp_path, monkeypatch, commands, capsys):
    monkeypatch.setattr("nnunet_dvcl.tools.demo.run.Size", lambda: QUICK)
    run_demo(str(tmp_path))
    shown = capsys.readouterr().out
    assert "DVCL against nnU-Net, same iterations: +0.250\n" in shown
    assert "DVCL against nnU-Net, same time: -0.125\n" in shown
    assert "minutes on two cores" in shown.split("==")[0]
    with open(tmp_path / "dice.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["organ"] for row in rows] == [*ORGANS, "mean"]
    assert [rows[-1][title] for title in ("nnU-Net", "DVCL", "nnU-Net, same time")] == ["0.5000", "0.7500", "0.8750"]
    assert (tmp_path / "comparison.png").stat().st_size > 10_000


def test_the_second_training_of_nnunet_has_the_time_of_dvcl(tmp_path, monkeypatch, commands):
    monkeypatch.setattr("nnunet_dvcl.tools.demo.run.Size", lambda: QUICK)
    run_demo(str(tmp_path))
    trainings = [line[2:6] for line in commands if line[0] == "nnUNetv2_train"]
    assert trainings == [[t.configuration, "all", "-tr", t.trainer] for t in (SUPERVISED, DVCL, SAME_TIME)]
    assert f"ssl.num_epochs={4 * QUICK.num_epochs}" in [line[-1] for line in commands]


@pytest.mark.slow
def test_quick_demo_through_the_commands(warm_commands, tmp_path, capsys):
    """nnU-Net's own commands, each a process of its own: of one training, the others differ in names alone."""
    assert main(["demo", "--quick", "-o", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "$ nnUNetv2_train 900 2d_demo all -tr nnUNetTrainerDVCL -device" in shown
    assert "   Epoch 0\n" in shown
    assert all(organ in shown for organ in [*ORGANS, "mean"])
    with open(tmp_path / "dice.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["organ"] for row in rows] == [*ORGANS, "mean"]
    assert all(0 <= float(row["DVCL"]) <= 1 for row in rows)
    assert len(list((tmp_path / "predictions/DVCL").glob("*.nii.gz"))) == QUICK.num_test

    assert main(["demo", "--quick", "-o", str(tmp_path)]) == 0
    again = capsys.readouterr().out
    assert again.count("skipped") == 6
    assert "$" not in again
