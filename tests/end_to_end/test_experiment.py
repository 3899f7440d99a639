"""A whole experiment and self-training, with nnU-Net's own commands on the tiny data set."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_values import SMALL
from tiny_data import read_image

from nnunet_dvcl.cli import main
from tests.end_to_end.conftest import ROOT

pytestmark = pytest.mark.slow

SHORT_VALUES = {f"ssl.{key}": value for key, value in SMALL.items() if key != "seed"} | {"ssl.num_epochs": 1}


@pytest.fixture
def commands(before_training, warm_commands, monkeypatch):
    """Its environment is that of this process too: `main` here starts sooner than a command, and is the same."""
    (before_training.tiny.preprocessed / "splits_final.json").unlink()
    # of this checkout, whichever is installed; workers that predict take longer to start than to work here
    variables = {"PYTHONPATH": str(ROOT), "nnUNet_npp": "0", "nnUNet_nps": "0"}
    commands = replace(before_training, variables=variables)
    for name, value in commands.environment.items():
        monkeypatch.setenv(name, value)
    return commands


def test_an_experiment(commands, capsys):
    """Two trainers, one seed: trained, tested, in the tables."""
    content = {
        "dataset": 901,
        "configurations": {"2d_e": {"from": "2d_tiny", "set": SHORT_VALUES}},
        "splits": {"labeled": ["50%"], "folds": 2, "test": 0.17},
        "trainers": ["nnUNetTrainerSupervised", "nnUNetTrainerDVCL"],
        "devices": "cpu",
        "report": {"baseline": "nnUNetTrainerSupervised"},
    }
    file = commands.tiny.root / "trial.yaml"
    file.write_text(yaml.safe_dump(content))
    assert main(["experiment", "run", str(file)]) == 0
    assert main(["experiment", "status", str(file)]) == 0
    assert "2 runs: 2 finished" in capsys.readouterr().out

    (split,) = json.loads((commands.tiny.preprocessed / "splits_final.json").read_text())
    fold = commands.model("2d_e_seed0") / "fold_0"
    assert {path.name for path in (fold / "test").glob("*.nii.gz")}.isdisjoint(
        f"{case}.nii.gz" for cases in split.values() for case in cases
    )
    log = next(commands.tiny.results.rglob("logs/nnUNetTrainerDVCL__2d_e__50pct__fold0__seed0.log")).read_text()
    assert f"3 of imagesTr_unlabeled, {len(split['unlabeled'])} of the split" in log

    assert main(["experiment", "report", str(file)]) == 0
    assert "against nnUNetTrainerSupervised" in capsys.readouterr().out
    with open(commands.tiny.root / "trial_report/cases.csv") as table:
        rows = list(csv.DictReader(table))
    assert {row["row"] for row in rows} == {"nnUNetTrainerSupervised", "nnUNetTrainerDVCL"}
    assert len(rows) == 2 * 1 * 2


def test_self_training(commands, capfd):
    """The student has the pseudo-labels of the unlabeled cases; validation is as the teacher's; nothing is copied."""
    tiny = commands.tiny
    split = {"train": ["case_0", "case_1"], "val": ["case_5"], "unlabeled": ["case_3"]}
    tiny.write_splits({"train": ["case_2"], "val": ["case_4"]}, split)
    commands.configure("2d_s", "2d_tiny", num_epochs=1)
    words = ("selftrain", "-d", "901", "-c", "2d_s", "-f", "1", "-tr", "nnUNetTrainerSupervised", "-device", "cpu")
    assert main([*words, "--ignore-uncertain", "0.6"]) == 0
    output = capfd.readouterr().out
    assert "Round 1: Dataset902_Tiny_SelfTrain1" in output

    raw, preprocessed = (Path(folder).parent / "Dataset902_Tiny_SelfTrain1" for folder in (tiny.raw, tiny.preprocessed))
    dataset_json = json.loads((raw / "dataset.json").read_text())
    pseudo = {"case_3", *tiny.scans}
    assert dataset_json["dataset"].keys() == {"case_0", "case_1", "case_5", *pseudo}
    assert dataset_json["labels"]["ignore"] == 3
    assert dataset_json["dataset"]["case_0"]["label"] == str(tiny.raw / "labelsTr/case_0.nii.gz")
    for case in pseudo:
        assert set(np.unique(read_image(Path(dataset_json["dataset"][case]["label"])))) <= {0, 1, 2, 3}
    assert dataset_json["dataset"]["case_3"]["label"] != str(tiny.raw / "labelsTr/case_3.nii.gz")
    assert not list(raw.rglob("*.npz"))
    (student_split,) = json.loads((preprocessed / "splits_final.json").read_text())
    assert student_split == {"train": sorted(["case_0", "case_1", *pseudo]), "val": ["case_5"]}
    plans, ours = (json.loads((f / "nnUNetPlans.json").read_text()) for f in (tiny.preprocessed, preprocessed))
    assert ours["configurations"] == plans["configurations"]

    fold = tiny.results / "Dataset902_Tiny_SelfTrain1/nnUNetTrainerSupervised__nnUNetPlans__2d_s/fold_0"
    assert output.splitlines()[-1] == f"Trained: {fold}"
    assert json.loads((fold / "validation/summary.json").read_text())["metric_per_case"]
    assert [path.name for path in (fold / "validation").glob("*.nii.gz")] == ["case_5.nii.gz"]
    assert main([*words, "--ignore-uncertain", "0.6"]) == 0
    assert "$ nnUNetv2" not in capfd.readouterr().out
