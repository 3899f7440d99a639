"""Who does a run: a lock that the training itself holds."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path


class Lock:
    """A file that one process has to itself.

    The children that inherit `descriptor` hold the lock too. So a training whose parent was killed is still known to
    run, which a lock of the parent alone (filelock's) could not tell. The system frees it when the last of them ends.
    """

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    @classmethod
    def acquire(cls, file: Path, wait: bool = False) -> Lock | None:
        """The lock; None when another process has it and `wait` is False."""
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def release(self) -> None:
        """Closing alone leaves it to the children that have inherited it."""
        with suppress(OSError):
            os.close(self.descriptor)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_) -> None:
        self.release()


def is_held(file: Path) -> bool:
    """Whether some process has the lock now; looking does not take it from anybody."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
