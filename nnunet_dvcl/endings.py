"""What is shown when an exception ends a process: of a ``UserError`` the message alone.

nnU-Net's commands catch nothing, so Python shows what ends them through ``sys.excepthook``, the way to it included.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from nnunet_dvcl.errors import UserError


@contextmanager
def message_alone() -> Iterator[None]:
    """A ``UserError`` that leaves the block and ends this process is shown by its message; others as ever."""
    try:
        yield
    except UserError:
        _own_hook()
        if multiprocessing.parent_process() is not None:
            # one of nnU-Net's several GPUs: torch passes on what `traceback` makes of it, and the parent shows that
            sys.tracebacklimit = 0
        raise


def hint_behind(name: str, hint: str) -> None:
    """Where the process ends with an exception that names `name`, the hint is shown behind it."""
    _own_hook().hints[name] = hint


class _Hook:
    """A ``sys.excepthook``."""

    def __init__(self, before: Callable[[type, BaseException, TracebackType | None], object]) -> None:
        self.before = before
        self.hints: dict[str, str] = {}

    def __call__(self, kind: type, error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, UserError):
            print(f"\nError: {error}", file=sys.stderr)
            return
        self.before(kind, error, traceback)
        for hint in (hint for name, hint in self.hints.items() if name in str(error)):
            print(f"\n{hint}", file=sys.stderr)


def _own_hook() -> _Hook:
    if not isinstance(sys.excepthook, _Hook):
        sys.excepthook = _Hook(sys.excepthook)
    return sys.excepthook
