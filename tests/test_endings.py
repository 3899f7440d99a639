"""What the user sees of an error that ends nnU-Net's command."""

import subprocess
import sys

import pytest
import torch

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.trainers import nnUNetTrainerSupervised

ONE_PROCESS = """
from nnunet_dvcl.endings import message_alone
from nnunet_dvcl.errors import UserError

@message_alone()
def train():
    try:
        1 / 0
    except ZeroDivisionError as reason:
        raise {error}("no scans\\nput them there") from reason

{call}
"""
CALLED = "train()"
CAUGHT = """
try:
    train()
except UserError:
    raise ValueError("another") from None
"""
SPAWNED = """
import sys, torch
sys.path.insert(0, {folder!r})
from module import train

if __name__ == "__main__":
    torch.multiprocessing.spawn(train, nprocs=1)
"""


def stderr_of(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr


def test_the_message_of_a_user_error_is_shown_alone():
    assert stderr_of(ONE_PROCESS.format(error="UserError", call=CALLED)) == "\nError: no scans\nput them there\n"


@pytest.mark.parametrize(("error", "call"), [("ValueError", CALLED), ("UserError", CAUGHT)])
def test_other_errors_keep_their_traceback(error, call):
    shown = stderr_of(ONE_PROCESS.format(error=error, call=call))
    assert shown.startswith("Traceback (most recent call last):\n  File ")
    assert "ValueError: " in shown.splitlines()[-1 if call == CAUGHT else -2]


def test_of_several_processes_the_message_comes_last(tmp_path):
    """As nnU-Net starts them, one a GPU."""
    code = ONE_PROCESS.format(error="UserError", call="").replace("def train()", "def train(rank)")
    (tmp_path / "module.py").write_text(code)
    (tmp_path / "main.py").write_text(SPAWNED.format(folder=str(tmp_path)))
    done = subprocess.run([sys.executable, str(tmp_path / "main.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    _, _, tail = done.stderr.partition("-- Process 0 terminated")
    assert tail.rstrip().endswith("nnunet_dvcl.errors.UserError: no scans\nput them there")
    assert "File " not in tail


def test_a_misspelled_trainer_gets_a_hint_behind_nnunets_error():
    find = "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\nfind({!r})"
    shown = stderr_of(find.format("nnUNetTrainerDCVL"))
    assert "RuntimeError: Could not find requested nnunet trainer nnUNetTrainerDCVL" in shown
    assert shown.endswith("\n\nDid you mean nnUNetTrainerDVCL?\n")


def test_a_trainers_own_errors_are_shown_so(build_trainer, monkeypatch):
    """Whatever nnU-Net's command calls."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    trainer = build_trainer(nnUNetTrainerSupervised)

    def fails(*_):
        raise UserError("bad input")

    monkeypatch.setattr(nnUNetTrainerSupervised, "initialize", fails)
    for call in (trainer.run_training, lambda: trainer.load_checkpoint("file")):
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
        with pytest.raises(UserError, match="bad input"):
            call()
        assert sys.excepthook is not sys.__excepthook__


def test_without_a_gpu_it_is_said_before_any_work(build_trainer, monkeypatch):
    trainer = build_trainer(nnUNetTrainerSupervised)
    trainer.device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no GPU here: for small data train with -device cpu"):
        trainer.initialize()
    assert trainer.network is None
