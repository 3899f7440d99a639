"""Disks that are full or read-only, for root as well, and without the right to mount one."""

import ctypes
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@pytest.fixture
def no_file_beyond() -> Callable:
    """``with no_file_beyond(bytes)``: the system refuses to write more into a file, as it does on a full disk."""

    @contextmanager
    def limit(num_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path | None]]:
    """``small_disk(bytes)``: a folder on a tmpfs of that size; None where this user must not mount one."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    mounted = []

    def mount(num_bytes: int) -> Path | None:
        command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except FileNotFoundError:
            return None
        if done.returncode == 0:
            mounted.append(folder)
        return mounted[0] if mounted else None

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def read_only() -> Callable:
    """``with read_only(folder)``: nothing can be made, replaced or removed in it, nor in a folder below it."""

    @contextmanager
    def protect(folder: str | Path) -> Iterator[None]:
        folders = [path for path in (Path(folder), *Path(folder).rglob("*")) if path.is_dir()]
        modes = [path.stat().st_mode for path in folders]
        for path in folders:
            path.chmod(0o555)
        try:
            with _without_the_rights_of_root():
                yield
        finally:
            for path, mode in zip(folders, modes, strict=True):
                path.chmod(mode)

    return protect


@contextmanager
def _without_the_rights_of_root() -> Iterator[None]:
    """Permissions hold for root too in this block: capability CAP_DAC_OVERRIDE is switched off for this thread."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    before = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then their upper halves
    assert libc.capget(header, before) == 0
    without = (ctypes.c_uint32 * 6)(*before)
    without[0] &= ~(1 << 1)
    assert libc.capset(header, without) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0
