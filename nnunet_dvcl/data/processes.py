"""Work for several processes."""

import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from nnunet_dvcl.errors import UserError

Log = Callable[[str], object]
Result = TypeVar("Result")


def in_processes(function: Callable[..., Result], tasks: Iterable[tuple], num_processes: int) -> Iterator[Result]:
    """Yield ``function(*task)`` of each task, as they finish; in this process where one is enough.

    Tasks are taken from the iterable only as the processes get on with them: they may be large, and made one by one.

    Raises:
        UserError: a process died.
    """
    if num_processes <= 1:
        yield from itertools.starmap(function, tasks)
        return
    pool = ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn"), initializer=exit_with_parent)
    try:
        waiting = set()
        for task in tasks:
            waiting.add(pool.submit(function, *task))
            if len(waiting) > num_processes:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in as_completed(waiting))
    except BrokenProcessPool as error:
        raise UserError(
            "A worker process died, most likely because the memory was full. What is done is kept; run again with "
            "fewer workers to do the rest: nnUNet_def_n_proc=1, or `nnunet_dvcl preprocess` with -np 1."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def exit_with_parent() -> None:
    """Called in a worker: one of a killed parent would wait for work forever, or make it for nobody."""
    parent = multiprocessing.parent_process()

    def wait_for_parent() -> None:
        if multiprocessing.get_start_method() == "fork":  # forked siblings keep open what `join` waits for
            while os.getppid() == parent.pid:
                time.sleep(1)
        else:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()


@contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """nnU-Net, and the workers that it starts, see this value inside of the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
