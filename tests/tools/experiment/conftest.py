"""Experiments on the tiny data set, with commands that only leave nnU-Net's traces."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest
import yaml

from nnunet_dvcl.tools.experiment.experiment_file import read_experiment
from nnunet_dvcl.tools.experiment.runs import Workplace
from nnunet_dvcl.tools.running import command as commands

# what they do is chosen by files that a test puts beside them, named action.<configuration>
_TRAIN = """
    #!/bin/sh
    here=$(dirname "$0")
    echo "train $*" >> "$here/calls"
    env | grep -E "CUDA_VISIBLE|OMP_NUM|n_proc_DA|OWN" | sort > "$here/environment.$2"
    fold="$nnUNet_results/Dataset901_Tiny/${5}__${7}__${2}/fold_$3"
    echo "2026: Epoch 7"
    mkdir -p "$fold/validation"
    if [ -e "$here/action.$2" ]; then . "$here/action.$2"; fi
    touch "$fold/checkpoint_final.pth"
    echo "{}" > "$fold/validation/summary.json"
"""
_PREDICT = """
    #!/bin/sh
    here=$(dirname "$0")
    echo "predict $*" >> "$here/calls"
    mkdir -p "$4"
    labels="$nnUNet_raw/Dataset901_Tiny/labelsTr"
    for image in "$2"/*; do cp "$labels/$(basename "$image" _0000.nii.gz).nii.gz" "$4"; done
"""
_PREPROCESS = """
    #!/bin/sh
    echo "preprocess $*" >> "$(dirname "$0")/calls"
"""
_COMMANDS = {"nnUNetv2_train": _TRAIN, "nnUNetv2_predict": _PREDICT, "nnUNetv2_preprocess": _PREPROCESS}
CONTENT = {
    "dataset": 901,
    "configurations": {"2d_small": {"from": "2d_tiny", "set": {"batch_size": 3, "ssl.num_epochs": 2}}},
    "splits": {"labeled": ["50%", "100%"], "folds": 2},
    "trainers": [
        "nnUNetTrainer",
        {
            "trainer": "nnUNetTrainerDVCL",
            "name": "DVCL",
            "labeled": ["50%"],
            "set": {"ssl.unlabeled_folder": False},
        },
    ],
    "devices": "cpu",
}


class Fakes:
    """The folder of the commands that stand for nnU-Net's."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name, text in _COMMANDS.items():
            (folder / name).write_text(textwrap.dedent(text).strip() + "\n")
            (folder / name).chmod(0o755)

    def let(self, configuration: str, script: str) -> None:
        """Let a training do something before it ends well."""
        (self.folder / f"action.{configuration}").write_text(f"{script}\n")

    def forget(self) -> None:
        for file in (*self.folder.glob("action.*"), self.folder / "calls"):
            file.unlink(missing_ok=True)

    @property
    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def environment(self, configuration: str) -> dict[str, str]:
        lines = (self.folder / f"environment.{configuration}").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def fakes(tmp_path, monkeypatch) -> Fakes:
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setattr(commands.sysconfig, "get_path", lambda _: os.fspath(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Fakes(folder)


@pytest.fixture
def write(tmp_path):
    """``write(key=value, ...)``: the path of an experiment file with `CONTENT` and these keys."""

    def write_file(**changes) -> Path:
        file = tmp_path / "trial.yaml"
        file.write_text(
            yaml.safe_dump({k: v for k, v in {**CONTENT, **changes}.items() if v is not None}, sort_keys=False)
        )
        return file

    return write_file


@pytest.fixture
def place(write, tiny_dataset):
    """``place(key=value, ...)``: the workplace of such a file on the tiny data set."""
    return lambda **changes: Workplace(read_experiment(write(**changes)))
