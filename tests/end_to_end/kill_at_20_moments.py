"""``kill -9`` at 20 random moments each of training, preprocessing and ``configure``.

Takes about ten minutes, so no part of the test suite (which kills at chosen moments). Run it with

    python -m pytest -n 0 -s tests/end_to_end/kill_at_20_moments.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_dvcl.data.storage import complete_cases

MOMENTS = int(os.environ.get("MOMENTS", "20"))
ROOT = Path(__file__).parents[2]
NNUNET_DVCL = (sys.executable, "-m", "nnunet_dvcl.cli")
random = Random(0)


@pytest.fixture
def commands(before_training):
    """Of this checkout, also where another one is installed."""
    return replace(before_training, variables={"PYTHONPATH": str(ROOT)})


def run(commands, *command, seconds: float | None = None, until: str | None = None) -> tuple[int, float, str]:
    """Exit status, duration and output of a command that is killed after `seconds`, or when it has printed `until`."""
    log, started = commands.tiny.root / "killed.log", time.monotonic()
    with open(log, "w") as file:
        process = commands.start(*command, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None and time.monotonic() - started < (seconds or 600):
            if until is not None and until in log.read_text():
                break
            time.sleep(0.005)
        process.kill()
        process.wait()
    return process.returncode, time.monotonic() - started, log.read_text()


def test_training(commands):
    """Resumed with --c after each kill: what was saved before is there and whole, and goes on."""
    commands.configure("3d_long", num_epochs=400, num_iterations_per_epoch=1)
    command = commands.training("3d_long", "--c")
    fold = commands.model("3d_long") / "fold_0"
    saved = 0
    for _ in range(MOMENTS):
        status, seconds, output = run(commands, *command, seconds=random.uniform(2, 40))
        assert status == -signal.SIGKILL, output
        assert saved == 0 or "Epoch" not in output or f"Epoch {saved}\n" in output.replace(" \n", "\n")
        files = {file.name: torch.load(file, weights_only=False) for file in sorted(fold.glob("*.pth"))}
        assert all(file["ssl_state"]["iteration"] == file["current_epoch"] for file in files.values())
        chosen = files.get("checkpoint_latest.pth", files.get("checkpoint_best.pth"))
        assert saved <= (chosen["current_epoch"] if chosen else 0), "something that was saved is lost"
        saved = chosen["current_epoch"] if chosen else 0
        partial = ", one half written" if list(fold.glob("*.partial")) else ""
        print(f"killed after {seconds:4.1f} s: {', '.join(files) or 'none'}{partial}; next epoch {saved}", flush=True)
    assert saved > 0
    _, _, output = run(commands, *command, until=f"Epoch {saved + 1}")
    assert f"Epoch {saved}" in output
    assert not list(fold.glob("*.partial"))


def test_preprocessing(commands):
    """Whole cases are kept byte by byte, and the next run makes the rest."""
    tiny = commands.tiny
    first = sorted(tiny.images.iterdir())[0]
    for i in range(600):
        os.link(first, tiny.images / f"more_{i:03d}_0000.nii.gz")
    command = (*NNUNET_DVCL, "preprocess", "-d", "901", "-c", "3d_tiny", "-np", "2")
    folder = tiny.preprocessed / "nnUNetPlans_3d_fullres_unlabeled"
    kept: dict[str, bytes] = {}
    for _ in range(MOMENTS):
        status, seconds, output = run(commands, *command, seconds=random.uniform(2, 25))
        assert status in (-signal.SIGKILL, 0), output
        time.sleep(2)  # its workers end by themselves
        cases = complete_cases(str(folder), nnUNetDatasetBlosc2)
        for case in cases:
            data, mask, _, _ = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
            assert data[:].shape == mask[:].shape
        assert all((folder / name).read_bytes() == content for name, content in kept.items())
        kept = {f"{case}.b2nd": (folder / f"{case}.b2nd").read_bytes() for case in cases}
        print(f"killed after {seconds:4.1f} s: {len(cases)} whole cases", flush=True)
    commands.run(*command)
    assert len(complete_cases(str(folder), nnUNetDatasetBlosc2)) == 603
    assert not [entry for entry in (folder / ".nnunet_dvcl").iterdir() if entry.is_dir()]


def test_configure(commands):
    """The plans are the old or the new ones."""
    plans = commands.tiny.preprocessed / "nnUNetPlans.json"

    def configure(batch_size: int, **options) -> tuple[int, float, str]:
        options_of_command = ("configure", "-d", "901", "-c", "3d_tiny", "--name", "own", f"batch_size={batch_size}")
        return run(commands, *NNUNET_DVCL, *options_of_command, **options)

    _, whole, _ = configure(1)
    for number in range(MOMENTS):
        before = json.loads(plans.read_text())
        status, seconds, output = configure(number + 2, seconds=random.uniform(0, 1.2 * whole))
        assert status in (-signal.SIGKILL, 0), output
        after, new = json.loads(plans.read_text()), json.loads(json.dumps(before))
        new["configurations"]["own"]["batch_size"] = number + 2
        assert after in (before, new)
        print(f"killed after {seconds:4.2f} s: {'the new plans' if after == new else 'the old plans'}", flush=True)
    assert configure(99)[0] == 0
    assert not list(plans.parent.glob("*.partial"))
