"""Training that is killed, and ``--c``: it goes on exactly, or says why it cannot."""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

EPOCHS = 6


def kill_when(commands, condition: Callable[[], bool], configuration: str, *options: str) -> str:
    """``nnUNetv2_train``, ended by ``kill -9`` as soon as `condition` holds; returns what it printed until then."""
    log = commands.tiny.root / "killed.log"
    with open(log, "w") as file:
        command = commands.warm(*commands.training(configuration, *options))  # ends with the client that is killed
        process = commands.start(*command, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None and not condition():
            time.sleep(0.0005)
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, log.read_text()
    return log.read_text()


def is_written(file: Path) -> bool:
    """Now, or already: the moment is short."""
    return file.with_name(f"{file.name}.partial").exists() or file.exists()


def next_epoch(fold: Path) -> int:
    """Where ``--c`` has to go on; every checkpoint in the folder has to be whole."""
    checkpoints = {file.name: torch.load(file, weights_only=False) for file in fold.glob("*.pth")}
    for checkpoint in checkpoints.values():
        assert checkpoint["ssl_state"]["iteration"] == checkpoint["current_epoch"]
    chosen = checkpoints.get("checkpoint_final.pth", checkpoints.get("checkpoint_best.pth"))
    return chosen["current_epoch"] if chosen else 0


def first_epoch(output: str) -> int:
    epoch = re.search(r": Epoch (\d+)", output)
    return int(epoch[1]) if epoch else EPOCHS


def test_killed_at_any_moment_training_goes_on_and_ends(before_training):
    """Killed while nnU-Net's first and last checkpoint are written, and in the middle of an epoch."""
    commands = before_training
    commands.configure("3d_long", num_epochs=EPOCHS, num_iterations_per_epoch=1)
    fold = commands.model("3d_long") / "fold_0"
    best, final = (fold / f"checkpoint_{name}.pth" for name in ("best", "final"))
    moments = (
        lambda: is_written(best),
        lambda: "Epoch 2" in (commands.tiny.root / "killed.log").read_text(),
        lambda: is_written(final),
    )
    goes_on = 0
    for moment in moments:
        assert first_epoch(kill_when(commands, moment, "3d_long", "--c")) == goes_on
        goes_on = next_epoch(fold)

    assert first_epoch(commands.train("3d_long", "--c")) == goes_on > 0
    assert next_epoch(fold) == EPOCHS
    logging = commands.checkpoint("3d_long")["logging"]
    assert {key: len(values) for key, values in logging.items()} == dict.fromkeys(logging, EPOCHS)
    assert "ssl/dvcl" in logging
    assert (fold / "validation/summary.json").exists()
    assert not list(fold.glob("*.partial"))


def test_killed_while_a_checkpoint_is_replaced_the_old_one_or_the_new_one_is_there(after_training):
    """``--c`` on a training that is over writes checkpoint_final.pth again."""
    final = after_training.model("3d_short") / "fold_0/checkpoint_final.pth"
    before, age = after_training.checkpoint("3d_short"), final.stat().st_mtime_ns
    partial = final.with_name(f"{final.name}.partial")
    kill_when(after_training, lambda: partial.exists() or final.stat().st_mtime_ns != age, "3d_short", "--c")
    after = after_training.checkpoint("3d_short")
    assert after["current_epoch"] == before["current_epoch"]
    assert after["ssl_state"]["iteration"] == before["ssl_state"]["iteration"]
    for key, weights in before["network_weights"].items():
        assert torch.equal(after["network_weights"][key], weights)


def test_going_on_with_other_values_is_refused_with_the_differences(after_training):
    final = after_training.model("3d_short") / "fold_0/checkpoint_final.pth"
    before = final.read_bytes()
    after_training.configure("3d_short", num_neighbors=3, num_epochs=4)
    output = after_training.train("3d_short", "--c", fails=True)
    assert "ssl.num_neighbors: 5 there, 3 here" in output
    assert "ssl.num_epochs: 2 there, 4 here" in output
    assert output.count(" there, ") == 2
    assert final.read_bytes() == before


def test_going_on_from_another_trainers_checkpoint_is_refused_by_name(after_training):
    fold = after_training.model("3d_short", trainer="nnUNetTrainerCPS") / "fold_0"
    fold.mkdir(parents=True)
    shutil.copy(after_training.model("3d_short") / "fold_0/checkpoint_final.pth", fold)
    output = after_training.train("3d_short", "--c", trainer="nnUNetTrainerCPS", fails=True)
    assert "checkpoint of nnUNetTrainerDVCL, this run is nnUNetTrainerCPS" in output
