"""nnU-Net's work without its processes: to spawn them takes seconds."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace
from unittest import mock


@contextmanager
def threads_for_processes() -> Iterator[None]:
    """In this block the pools of nnU-Net's planning, preprocessing and validation are of one thread."""

    def threads(*_):
        return SimpleNamespace(Pool=lambda _: ThreadPool(1))

    with (
        mock.patch.object(multiprocessing, "get_context", threads),
        mock.patch("nnunetv2.utilities.utils.Pool", side_effect=lambda processes: ThreadPool(1)),
    ):
        yield
