"""One process at a time: an open file that it, and the children that inherit it, have to themselves."""

import errno
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

from nnunet_dvcl.errors import UserError

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where children do not share a lock
    import msvcrt

    fcntl = None

_POLL = 0.1  # s
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)  # Lustre, NFS and others may have none
_print = partial(print, flush=True)


class NoLocks(UserError):
    """Names the folder."""


def acquire(file: str | Path, patience: float = 0.0) -> TextIO | None:
    """The lock: it is held until the file is closed here and in every child that was given its descriptor.

    So a training whose parent was killed is still known to run. The system closes the files of a killed process.

    None when another process still has it after `patience` [s].

    Raises:
        NoLocks: the file system has none; nobody knows then whether another process is at work.
    """
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    lock = open(file, "a")  # noqa: SIM115 - the caller's to close
    deadline = time.monotonic() + patience
    while not _try_lock(lock):
        if time.monotonic() >= deadline:
            lock.close()
            return None
        time.sleep(_POLL)
    return lock


@contextmanager
def locked(file: str | Path, log: Callable[[str], object] = _print, waiting: str = "") -> Iterator[TextIO]:
    """Alone in this block; `log` is told `waiting` when another process has to be waited for.

    Raises:
        NoLocks: as `acquire`.
    """
    lock = acquire(file)
    if lock is None:
        log(waiting or f"Another process does the same work; waiting for it ({file})")
        lock = acquire(file, patience=math.inf)
    with lock:
        yield lock


@contextmanager
def locked_where_possible(file: str | Path, log: Callable[[str], object] = _print) -> Iterator[bool]:
    """As `locked`, for work that no other process can spoil; whether this one is alone. Without locks `log` is told."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(file, log))
        except NoLocks as error:
            log(f"WARNING: {error} Going on; let no other process do the same work now.")
            yield False
        else:
            yield True


def lock_of(folder: Path) -> Path:
    """Beside the folder, so that a folder of results holds results alone."""
    return folder.with_name(f"{folder.name}.lock")


def is_held(file: str | Path) -> bool:
    """Whether some process has the lock now; several may look at once."""
    try:
        with open(file) as looking:
            return not _try_lock(looking, shared=True)
    except FileNotFoundError:
        return False


def _try_lock(file: TextIO, shared: bool = False) -> bool:
    try:
        if fcntl is None:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise NoLocks(f"{Path(file.name).parent} is on a file system without locks ({error.strerror}).") from error
        raise
    return True
