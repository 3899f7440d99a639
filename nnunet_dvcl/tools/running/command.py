"""Command lines, as a user would type them and as they are started."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Mapping

from nnunet_dvcl.errors import UserError


class Command(tuple):
    """The words of a command line."""

    def __new__(cls, *words: object) -> Command:
        return super().__new__(cls, (str(word) for word in words))

    def __str__(self) -> str:
        """As it is typed into a shell."""
        return shlex.join(self)

    def program(self) -> list[str]:
        """The words with the program's path: the one beside this Python first; our own is that of this Python.

        Raises:
            UserError: there is no such program.
        """
        if self[0] == "nnunet_dvcl":
            return [sys.executable, "-m", "nnunet_dvcl.cli", *self[1:]]
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
        program = shutil.which(self[0], path=path)
        if program is None:
            raise UserError(f"The command {self[0]} was not found. Install nnunet_dvcl with pip into this Python.")
        return [program, *self[1:]]


def environment(variables: Mapping[str, str], device: str = "", threads: int = 1) -> dict[str, str]:
    """The environment of a command on a device.

    A GPU that is named by its number is the only one that the command sees. On a CPU nothing is left to worker
    processes, which no seed reaches; `variables` have the last word.
    """
    own = {"PYTHONUNBUFFERED": "1"}  # else the error of a failed command stands before what it printed last
    if device.startswith("cuda:"):
        number, visible = int(device.removeprefix("cuda:")), os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else None
        if names and number >= len(names):
            raise UserError(f"The device {device} is not there: CUDA_VISIBLE_DEVICES is {visible}.")
        own["CUDA_VISIBLE_DEVICES"] = names[number] if names else str(number)
    elif device == "cpu":
        own |= {"OMP_NUM_THREADS": str(threads), "nnUNet_n_proc_DA": "0"}
    return {**os.environ, **own, **variables}


def kind(device: str) -> str:
    """As nnU-Net's ``-device`` takes it."""
    return device.partition(":")[0]
