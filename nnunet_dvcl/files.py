"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nnunet_dvcl.errors import UserError


def visible_files(folder: str | os.PathLike) -> list[str]:
    """The names in a folder, sorted, without hidden ones such as a Mac's ``._NAME``; none where it is not there."""
    return sorted(name for name in os.listdir(folder) if not name.startswith(".")) if os.path.isdir(folder) else []


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Raises ``UserError`` where the block cannot write: a full disk, a read-only folder."""
    try:
        yield
    except UserError:  # says itself what to mend
        raise
    except (OSError, RuntimeError) as error:  # torch and Blosc2 answer a full disk with a RuntimeError
        raise UserError(
            f"{path} cannot be written ({error}). Is the disk full, or the folder read-only? Free space there or make "
            "it writable, then run again. What was saved before is unchanged."
        ) from error


@contextmanager
def replacing(file: str) -> Iterator[str]:
    """Yields the path to write to; it becomes `file` at the end of the block, in one step. One writer at a time.

    A kill at any moment leaves the old `file` or the new one, never half of one.

    Raises:
        UserError: it cannot be written; `file` is what it was.
    """
    partial = f"{file}.partial"
    try:
        with writing(file):
            yield partial
            with open(partial, "rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(partial, file)
    finally:
        with suppress(OSError):
            os.remove(partial)
