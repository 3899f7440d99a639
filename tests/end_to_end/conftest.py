"""nnU-Net's own commands, each in a process of its own, on a copy of the tiny data set.

They are forks of a process that has imported torch (warm_start.py). From nothing, as a user's, starts what runs without
the plugin; a training does in the benchmark of the start-up.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_values import SMALL

ROOT = Path(__file__).parents[2]
# fold 0 has unlabeled cases from both sources: scan_0 to scan_2, and these two
FOLD_0 = {"train": ["case_0", "case_1", "case_2"], "val": ["case_5"], "unlabeled": ["case_3", "case_4"]}


@dataclass(frozen=True)
class Commands:
    """What a user types, in the folders of `tiny`."""

    tiny: object  # TinyDataset of tiny_data.py
    variables: dict[str, str] = field(default_factory=dict)
    warm: Callable[..., list[str]] | None = None  # makes the command line of a warm start

    @property
    def environment(self) -> dict[str, str]:
        python = {
            "PATH": os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"])),
            "PYTHONUNBUFFERED": "1",  # what a killed command has printed
        }
        one_process = {"nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        return {**_clean_environment(), **python, **_registration(), **one_process, **self.tiny.env, **self.variables}

    def start(self, *command: str | Path, **options) -> subprocess.Popen:
        command = [str(word) for word in command]
        return subprocess.Popen(command, text=True, env=self.environment, cwd=self.tiny.root, **options)

    def run(self, *command: str | Path, fails: bool = False) -> str:
        """What the command prints; its exit status has to be 0 or, with `fails`, not 0."""
        if self.warm and str(command[0]).startswith(("nnUNetv2_", "nnunet_dvcl")):
            command = self.warm(*command)
        process = self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output, _ = process.communicate()
        assert (process.returncode != 0) == fails, f"{command} ended with {process.returncode}:\n{output}"
        return output

    def configure(self, name: str, parent: str = "3d_tiny", **ssl: float | str | None) -> None:
        """``nnunet_dvcl configure``; needs a warm start, which finds it where it is not installed."""
        assignments = [f"ssl.{key}={value}" for key, value in (SMALL | ssl).items()]
        self.run("nnunet_dvcl", "configure", "-d", "901", "-c", parent, "--name", name, *assignments)

    def train(self, configuration: str, *options: str | Path, trainer: str = "nnUNetTrainerDVCL", **expected) -> str:
        return self.run(*self.training(configuration, *options, trainer=trainer), **expected)

    @staticmethod
    def training(configuration: str, *options: str | Path, trainer: str = "nnUNetTrainerDVCL") -> list[str | Path]:
        return ["nnUNetv2_train", "901", configuration, "0", "-tr", trainer, "-device", "cpu", *options]

    def predict(self, configuration: str, output: Path, workers: int = 0) -> dict[str, bytes]:
        """``nnUNetv2_predict`` of the scans without labels; file name -> content."""
        self.run(
            *("nnUNetv2_predict", "-i", self.tiny.images, "-o", output, "-d", "901", "-c", configuration, "-f", "0"),
            *("-tr", "nnUNetTrainerDVCL", "-device", "cpu", "-npp", str(workers), "-nps", str(workers)),
        )
        return {file.name: file.read_bytes() for file in output.glob("*.nii.gz")}

    def model(self, configuration: str, trainer: str = "nnUNetTrainerDVCL") -> Path:
        """The folder of the trained model."""
        return self.tiny.results / self.tiny.name / f"{trainer}__nnUNetPlans__{configuration}"

    def checkpoint(self, configuration: str, name: str = "checkpoint_final.pth", **trainer: str) -> dict:
        file = self.model(configuration, **trainer) / "fold_0" / name
        return torch.load(file, map_location="cpu", weights_only=False)

    def copy(self, root: Path) -> Commands:
        shutil.copytree(self.tiny.root, root, dirs_exist_ok=True)
        return replace(self, tiny=type(self.tiny)(root), variables={})


def _clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("nnUNet_", "PYTHON"))}


def _registration() -> dict[str, str]:
    """The variables that make nnU-Net find the trainers of a checkout; none where nnunet_dvcl is installed."""
    look = "import os; print(os.environ.get('nnUNet_extTrainer', ''))"
    start = [sys.executable, "-I", "-c", look]
    found = subprocess.run(start, env=_clean_environment(), capture_output=True, text=True, check=True).stdout
    if "nnunet_dvcl" in found:
        return {}
    return {"PYTHONPATH": str(ROOT), "nnUNet_extTrainer": str(ROOT / "nnunet_dvcl" / "discovery")}


def _copy_to_train(tiny, root: Path, warm: Callable[..., list[str]]) -> Commands:
    commands = Commands(tiny, warm=warm).copy(root)
    commands.tiny.results.mkdir()
    commands.tiny.write_splits(FOLD_0)
    commands.configure("2d_short", "2d_tiny")
    return commands


@pytest.fixture(scope="session")
def _untrained(_tiny_original, tmp_path_factory, warm) -> Commands:
    commands = _copy_to_train(_tiny_original, tmp_path_factory.mktemp("end_to_end") / "untrained", warm)
    commands.configure("3d_short")
    return commands


@pytest.fixture
def regions_and_ignore(tiny_originals, tmp_path: Path, warm) -> Commands:
    """A data set with regions and an ignore label, with 2d_short configured."""
    return _copy_to_train(tiny_originals("regions + ignore"), tmp_path / "regions", warm)


@pytest.fixture
def without_data(tmp_path: Path, warm) -> Commands:
    """nnU-Net's folders, empty, and the commands of this checkout on a CPU."""
    folders = {name: str(tmp_path / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        os.mkdir(folder)
    # nnU-Net's planner takes the number of workers for torch's number of threads, which cannot be 0
    variables = {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    # workers that predict take longer to start than to work here
    variables |= {"nnUNet_npp": "0", "nnUNet_nps": "0"}
    return Commands(SimpleNamespace(root=tmp_path, env=folders), variables, warm)


@pytest.fixture(scope="session")
def trained(_untrained: Commands, made_once: Callable) -> Commands:
    """3d_short and 2d_short, each trained with nnUNetTrainerDVCL. Shared by all tests: read only."""

    def make(folder: Path) -> None:
        commands = _untrained.copy(folder)
        commands.train("3d_short")
        commands.train("2d_short")

    return replace(_untrained, tiny=type(_untrained.tiny)(made_once("trained", make)))


@pytest.fixture
def own_copy(tmp_path: Path) -> Callable[[Commands], Commands]:
    return lambda commands: commands.copy(tmp_path / "own")


@pytest.fixture
def after_training(trained: Commands, own_copy) -> Commands:
    """The test's own copy of `trained`."""
    return own_copy(trained)


@pytest.fixture
def before_training(_untrained: Commands, own_copy) -> Commands:
    """The test's own copy of the data set, with 3d_short and 2d_short configured."""
    return own_copy(_untrained)
