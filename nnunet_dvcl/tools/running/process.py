"""Commands that run: each is a group of processes, which can be ended with all that it has started."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TextIO

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.running.command import Command

_PATIENCE = 15.0  # s that an ended command has to clean up
_TAIL = 15  # lines of a log that are shown


@contextmanager
def log_of(command: Command, file: Path) -> Iterator[TextIO]:
    """A log that goes on with the command's line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="utf-8") as log:
        log.write(f"\n$ {command}\n")
        log.flush()
        yield log


def tail(log: str | Path) -> str:
    return "\n".join(Path(log).read_text(errors="replace").splitlines()[-_TAIL:])


def start(
    command: Command, variables: Mapping[str, str], output: IO | int, pass_fds: Sequence[int] = ()
) -> subprocess.Popen:
    """Starts a command that reads nothing.

    Args:
        variables: its whole environment.
        output: open file, or ``subprocess.PIPE``, for what it prints.
        pass_fds: open files that it holds too, such as a lock's.

    Raises:
        UserError: there is no such program.
    """
    return subprocess.Popen(
        command.program(),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=variables,
        pass_fds=pass_fds,
        start_new_session=True,
        text=True,
        errors="replace",
    )


def stop(*processes: subprocess.Popen) -> None:
    """Ends commands and all that they have started, at first with the chance to clean up."""
    deadline = time.monotonic() + _PATIENCE
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with suppress(ProcessLookupError, PermissionError):  # nobody is left in its group
                os.killpg(process.pid, number)
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(None if number == signal.SIGKILL else max(0.0, deadline - time.monotonic()))


def call(
    command: Command, variables: Mapping[str, str], log: TextIO, show: Callable[[str], object] | None = None
) -> None:
    """Runs a command to its end.

    Args:
        variables: its whole environment.
        log: open file for what it prints.
        show: gets each line of it as it comes.

    Raises:
        UserError: there is no such program, or it failed; with the last lines of the log.
    """
    with start(command, variables, subprocess.PIPE if show else log) as process:
        try:
            for line in process.stdout or ():
                log.write(line)
                show(line)
            status = process.wait()
        finally:
            stop(process)
    log.flush()
    if status:
        lines = tail(log.name)
        raise UserError(f"{command[0]} failed with status {status}. Its last lines:\n{lines}\nAll: {log.name}")


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM (a queueing system's) ends the block as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
