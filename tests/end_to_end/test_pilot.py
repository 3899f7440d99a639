"""A whole pilot with nnU-Net's own commands: two labeled cases of the tiny data set, four trainings of four steps."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from small_values import SMALL

from nnunet_dvcl.cli import main
from nnunet_dvcl.commands import device_option
from tests.end_to_end.conftest import ROOT, Commands

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def tiny(tiny_dataset, monkeypatch):
    """The environment of the commands is that of this process too: `main` here starts sooner, and is the same."""
    for case in tiny_dataset.labeled[2:]:
        (tiny_dataset.raw / f"imagesTr/{case}_0000.nii.gz").unlink()
    plans = tiny_dataset.plans
    plans["configurations"]["2d_short"] = {"inherits_from": "2d_tiny", "ssl": SMALL}
    tiny_dataset.write_plans(plans)
    # of this checkout, whichever is installed; workers that predict take longer to start than to work here
    commands = Commands(tiny_dataset, {"PYTHONPATH": str(ROOT), "nnUNet_npp": "0", "nnUNet_nps": "0"})
    for name, value in commands.environment.items():
        monkeypatch.setenv(name, value)
    return tiny_dataset


def _read(folder: Path) -> dict[Path, bytes]:
    """But for what is hidden, such as the manifest of unlabeled scans, which a training would write too."""
    files = [file for file in folder.rglob("*.json") if not file.parent.name.startswith(".")]
    return {file: file.read_bytes() for file in files}


def test_a_pilot(tiny, capsys):
    before = _read(tiny.preprocessed)
    words = ("pilot", "-d", "901", "-c", "2d_short", "--hours", "2", "--devices", "cpu")
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "2 folds x 2 trainers = 4 trainings, 0 finished; each of 4 steps (2 epochs of 2)" in output
    assert "4 steps" in output.split("\n== ")[3]
    assert _read(tiny.preprocessed) == before

    (folder,) = tiny.results.glob("*/pilots/*")
    assert {path.name for path in tiny.results.glob("*/*")} == {"pilots"}
    assert {"pilot.png", "report"} <= {path.name for path in folder.iterdir()}
    for number, fold in enumerate(json.loads(next(folder.glob("preprocessed/*/splits_final.json")).read_text())):
        (log,) = folder.glob(f"results/*/experiments/pilot/logs/nnUNetTrainerDVCL__*__fold{number}__seed0.log")
        assert "3 of imagesTr_unlabeled" in log.read_text()
        (predicted,) = folder.glob(f"results/*/nnUNetTrainerDVCL__*_pilot_seed0/fold_{number}/validation/*.nii.gz")
        assert [predicted.name] == [f"{case}.nii.gz" for case in fold["val"]]
    if "Go on with the full training" in output:
        command = shlex.split(output.splitlines()[-1])
        assert command[:5] == ["nnUNetv2_train", "901", "2d_short", "all", "-tr"]
        assert command[6:] == list(device_option())

    assert main(words) == 0
    assert "4 trainings, 4 finished" in capsys.readouterr().out
