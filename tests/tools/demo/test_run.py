"""The demo's commands: skipping, failures, folders; and all of it, quickly, through the real command line."""

import csv
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.demo.phantom import ORGANS
from nnunet_dvcl.tools.demo.run import DVCL, QUICK, TRAININGS, Runner, Size, _claim, _configure_same_time


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


def test_epochs_are_shown_as_they_come(tmp_path, capsys):
    Runner(tmp_path).command("a", "Step A", sys.executable, "-c", "print('2024-01-01 00:00:00.000: Epoch 7')")
    assert "   Epoch 7\n" in capsys.readouterr().out


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


def test_nnunet_trains_for_the_time_of_dvcl(tmp_path, monkeypatch):
    """Of all log files of a training that was resumed."""
    times = {"nnUNetTrainerSupervised": ["2.0", "4.0"], "nnUNetTrainerDVCL": ["10.5"]}
    for trainer, seconds in times.items():
        folder = tmp_path / f"results/Dataset900_Phantom/{trainer}__nnUNetPlans__3d_demo/fold_all"
        folder.mkdir(parents=True)
        for i, value in enumerate(seconds):
            (folder / f"training_log_{i}.txt").write_text(f"2026-01-01 00:00:00.000000: Epoch time: {value} s \n")
    words = []
    monkeypatch.setattr(Runner, "command", lambda self, name, title, *command: words.extend(command))
    _configure_same_time(Runner(tmp_path), Size(num_epochs=10))
    assert DVCL.epoch_time(tmp_path / "results") == 10.5
    assert words[-1] == "ssl.num_epochs=35"


@pytest.mark.slow
def test_quick_demo_through_the_command_line(tmp_path):
    command = shutil.which("nnunet_dvcl", path=sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"])
    if command is None:
        pytest.skip("nnunet_dvcl is not installed with pip in this environment")
    folder = tmp_path / "demo"
    demo = [command, "demo", "--quick", "-o", str(folder)]
    done = subprocess.run(demo, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    assert "$ nnUNetv2_train 900 3d_demo all -tr nnUNetTrainerDVCL -device" in done.stdout
    assert "$ nnUNetv2_train 900 3d_demo_same_time all -tr nnUNetTrainerSupervised -device" in done.stdout
    assert "DVCL against nnU-Net, same time: " in done.stdout
    assert all(organ in done.stdout for organ in [*ORGANS, "mean"])
    titles = [training.title for training in TRAININGS]
    with open(folder / "dice.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["organ"] for row in rows] == [*ORGANS, "mean"]
    assert all(0 <= float(row[title]) <= 1 for row in rows for title in titles)
    assert (folder / "comparison.png").stat().st_size > 10_000
    for training in TRAININGS:
        assert len(list((folder / "predictions" / training.name).glob("*.nii.gz"))) == QUICK.num_test

    again = subprocess.run(demo, capture_output=True, text=True)
    assert again.returncode == 0
    assert again.stdout.count("skipped") == 13
    assert "$" not in again.stdout
