"""Commands that run: their logs, and that nothing of them is left."""

import os
import signal
import subprocess
import time

import pytest

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.running.command import Command
from nnunet_dvcl.tools.running.process import call, log_of, start, stop, stoppable


def is_running(pid: int) -> bool:
    """Not a zombie, which nobody may have waited for yet."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_log_has_the_command_line_and_what_came_before(tmp_path):
    command = Command("echo", "two words")
    for _ in range(2):
        with log_of(command, tmp_path / "logs/x.log") as log:
            call(command, os.environ, log)
    assert (tmp_path / "logs/x.log").read_text() == "\n$ echo 'two words'\ntwo words\n" * 2


def test_a_failure_has_the_last_lines(tmp_path):
    command = Command("sh", "-c", "seq 30; exit 4")
    with log_of(command, tmp_path / "x.log") as log, pytest.raises(UserError) as error:
        call(command, os.environ, log)
    last = "\n".join(map(str, range(16, 31)))
    assert str(error.value) == f"sh failed with status 4. Its last lines:\n{last}\nAll: {tmp_path / 'x.log'}"


@pytest.mark.parametrize("ignores", ["", "trap '' TERM; "])
def test_stopping_leaves_no_child(monkeypatch, ignores):
    monkeypatch.setattr("nnunet_dvcl.tools.running.process._PATIENCE", 0.3)
    command = Command("sh", "-c", f"{ignores}sleep 60 & echo $!; wait")
    process = start(command, os.environ, subprocess.PIPE)
    child = int(process.stdout.readline())
    assert is_running(child)
    stop(process)
    deadline = time.monotonic() + 5
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child)
    assert process.returncode < 0


def test_what_a_command_leaves_behind_is_ended_with_it(tmp_path):
    command = Command("sh", "-c", "sleep 60 & echo $!")
    with log_of(command, tmp_path / "x.log") as log:
        call(command, os.environ, log)
    child = int((tmp_path / "x.log").read_text().split()[-1])
    deadline = time.monotonic() + 5
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child)


def test_sigterm_is_an_interrupt_in_the_block_alone():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stoppable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
