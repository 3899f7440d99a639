"""Commands in forks of one process that has imported what nnU-Net stands on: to import it takes longer than they do.

Neither nnunetv2 nor nnunet_dvcl is imported before the fork: a command sees its own environment and its own checkout.
nnU-Net's worker processes are threads here, for the same reason. For Linux.
This file is a script, too: ``serve`` is the process that forks, anything else a command, which is run by a fork.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import json
import os
import runpy
import selectors
import signal
import site
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HEAVY = (
    "torch._dynamo torch.distributed.fsdp scipy.stats sklearn.metrics skimage.morphology seaborn SimpleITK pandas "
    "dynamic_network_architectures.architectures.primus nibabel pydantic"
)


def small_pictures() -> None:
    """nnU-Net's picture of each epoch, 30 x 54 inches, else takes longer than all else here."""
    import matplotlib

    matplotlib.rcParams["figure.dpi"] = 10


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Callable[..., list[str]]]:
    """Starts the process that forks; gives ``warm(*words)``, the command line that has the words done by a fork."""
    address = folder / "socket"
    # what OpenMP reads when it is loaded; threads that spin make a busy machine several times slower
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    process = subprocess.Popen([sys.executable, __file__, "serve", address], env=environment)
    try:
        while not address.exists():
            assert process.poll() is None, "the process that forks has ended"
            time.sleep(0.05)
        yield lambda *words: [sys.executable, "-I", "-S", __file__, str(address), *map(str, words)]
    finally:
        process.terminate()
        process.wait()


# --------------------------------------------------------------------------- the process that forks


class Forks:
    """The commands that run, each with the connection of the client that waits for it."""

    def __init__(self):
        self.ready = selectors.DefaultSelector()
        self.clients: dict[int, socket.socket] = {}  # by process

    def start(self, listener: socket.socket) -> list[str] | None:
        """Forks for the next client. Returns the command's words in the fork, None in this process."""
        client, _ = listener.accept()
        message, files, _, _ = socket.recv_fds(client, 1 << 20, 3)
        pid = os.fork()
        if pid == 0:
            for held in (client, *self.clients.values()):
                held.close()
            return become(**json.loads(message), files=files)
        for file in files:
            os.close(file)
        client.send(b"%d\n" % pid)
        self.clients[pid] = client
        self.ready.register(client, selectors.EVENT_READ, lambda: self.kill(pid))
        ended = os.pidfd_open(pid)
        self.ready.register(ended, selectors.EVENT_READ, lambda: self.reap(pid, ended))
        return None

    def kill(self, pid: int) -> None:
        """The client was killed: so is its command."""
        if pid not in self.clients:  # both have ended at once
            return
        self.ready.unregister(self.clients[pid])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    def reap(self, pid: int, ended: int) -> None:
        """Tells the client how its command has ended."""
        self.ready.unregister(ended)
        os.close(ended)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with self.clients.pop(pid) as client:
            with contextlib.suppress(KeyError):  # it was killed
                self.ready.unregister(client)
            with contextlib.suppress(OSError):
                client.send(b"%d\n" % status)


def serve(address: str) -> list[str]:
    """Forks for each client. Returns in each fork, with the command's words."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    forks = Forks()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.new")
        listener.listen()
        os.rename(f"{address}.new", address)  # there, and listening
        forks.ready.register(listener, selectors.EVENT_READ, lambda: forks.start(listener))
        while True:
            for key, _ in forks.ready.select():
                if words := key.data():
                    return words


def become(words: list[str], environment: dict[str, str], folder: str, files: list[int]) -> list[str]:
    """Makes this fork what a new process of the command would be."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdout.reconfigure(line_buffering=True)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[1:1] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    for packages in site.getsitepackages():
        if Path(packages, "nnunet_dvcl.pth").exists():
            site.addpackage(packages, "nnunet_dvcl.pth", None)
    import numpy as np
    import torch

    np.random.seed()
    torch.seed()
    return words


def run(words: list[str]) -> int | None:
    """The entry point of a command, as the script that pip writes calls it; ours, also where it is not installed.

    Or what follows ``python``: ``-u -m module ...``.
    """
    from thread_pools import threads_for_processes

    with threads_for_processes():
        if "-m" in words[:2]:
            sys.argv = words[words.index("-m") + 1 :]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
            return 0
        sys.argv = words
        if words[0] == "nnunet_dvcl":
            return importlib.import_module("nnunet_dvcl.cli").main()
        (entry,) = importlib.metadata.entry_points(group="console_scripts", name=words[0])
        return entry.load()()


# --------------------------------------------------------------------------- a client


def ask(address: str, words: list[str]) -> int:
    """Has the words done with this process's environment, folder and files; its exit status is theirs."""
    with socket.socket(socket.AF_UNIX) as server, server.makefile() as answers:
        server.connect(address)
        message = {"words": words, "environment": dict(os.environ), "folder": os.getcwd()}
        socket.send_fds(server, [json.dumps(message).encode()], [0, 1, 2])
        pid = int(answers.readline())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: os.killpg(pid, number))
        status = int(answers.readline() or 1)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    if sys.argv[1] != "serve":
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
    for module in HEAVY.split():
        importlib.import_module(module)
    small_pictures()
    gc.freeze()  # else each fork's garbage collection copies all of this
    sys.exit(run(serve(sys.argv[2])))
