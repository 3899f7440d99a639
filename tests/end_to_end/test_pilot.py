"""A whole pilot with nnU-Net's own commands: two labeled cases of the tiny data set, four trainings of four steps."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from nnunet_dvcl.cli import main
from tests.end_to_end.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def tiny(before_training, monkeypatch):
    """Its environment is that of this process too: `main` here starts sooner than a command, and is the same."""
    tiny = before_training.tiny
    for case in tiny.labeled[2:]:
        (tiny.raw / f"imagesTr/{case}_0000.nii.gz").unlink()
    variables = {"PYTHONPATH": str(ROOT), "nnUNet_npp": "0", "nnUNet_nps": "0"}
    for name, value in replace(before_training, variables=variables).environment.items():
        monkeypatch.setenv(name, value)
    return tiny


def _read(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*.json")}


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
        assert command[:4] == ["nnUNetv2_train", "901", "2d_short", "0"]
        assert command[-4:] == ["-p", "nnUNetPlans", "-device", "cpu"]

    assert main(words) == 0
    assert "4 trainings, 4 finished" in capsys.readouterr().out
