"""Who has a lock, who waits for it, and when it is free again."""

import errno
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from nnunet_dvcl import lock
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.lock import acquire, is_held, locked, locked_where_possible

HOLD = """
import sys, time
from nnunet_dvcl.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_lives_as_long_as_a_child_that_has_it(tmp_path):
    own = acquire(tmp_path / "lock")
    child = subprocess.Popen(["sleep", "60"], pass_fds=(own.fileno(),))
    own.close()
    assert is_held(tmp_path / "lock")
    assert acquire(tmp_path / "lock") is None
    child.kill()
    child.wait()
    assert not is_held(tmp_path / "lock")


def test_a_killed_owner_frees_it(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "lock"], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "held\n"
        assert is_held(tmp_path / "lock")
        owner.kill()
    with acquire(tmp_path / "lock") as own:
        assert own is not None


def test_who_waits_says_so(tmp_path):
    said, done = [], []

    def second() -> None:
        with locked(tmp_path / "lock", said.append):
            done.append(True)

    with locked(tmp_path / "lock"):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.5)
        assert said == [f"Another process does the same work; waiting for it ({tmp_path / 'lock'})"]
        assert not done
    waiting.join(10)
    assert done


def test_looking_takes_it_from_nobody(tmp_path):
    assert not is_held(tmp_path / "lock")
    with locked(tmp_path / "lock"):
        pass
    with open(tmp_path / "lock"):
        assert not is_held(tmp_path / "lock")
    assert acquire(tmp_path / "lock") is not None


def test_where_there_is_no_flock(tmp_path, monkeypatch):
    """Windows says "permission denied" of what another process has."""

    def locking(*_) -> None:
        raise PermissionError

    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking), raising=False)
    assert acquire(tmp_path / "lock") is None
    monkeypatch.setattr(lock.msvcrt, "locking", lambda *_: None)
    assert acquire(tmp_path / "lock") is not None


# ---------------------------------------------------------------- file systems without locks


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def no_locks(monkeypatch, request):
    def flock(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(lock, "fcntl", SimpleNamespace(flock=flock, LOCK_EX=1, LOCK_SH=2, LOCK_NB=4))


def test_a_file_system_without_locks_is_named_and_not_waited_for(tmp_path, no_locks):
    for attempt in (lambda: acquire(tmp_path / "lock", patience=60), lambda: is_held(tmp_path / "lock")):
        (tmp_path / "lock").touch()
        with pytest.raises(UserError, match=f"{tmp_path} is on a file system without locks"):
            attempt()


def test_work_that_nobody_can_spoil_goes_on_without_a_lock(tmp_path, no_locks):
    said = []
    with locked_where_possible(tmp_path / "lock", said.append) as alone:
        assert not alone
    (warning,) = said
    assert warning.startswith(f"WARNING: {tmp_path} is on a file system without locks")
    assert "let no other process do the same work" in warning


def test_with_locks_it_is_alone(tmp_path):
    with locked_where_possible(tmp_path / "lock") as alone:
        assert alone
        assert is_held(tmp_path / "lock")
    assert not is_held(tmp_path / "lock")


def test_an_error_of_the_block_is_not_one_of_the_lock(tmp_path):
    with pytest.raises(UserError, match="of the block"), locked_where_possible(tmp_path / "lock"):
        raise UserError("of the block")
    assert not is_held(tmp_path / "lock")


def test_another_error_of_the_system_stays_what_it_is(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(lock, "fcntl", SimpleNamespace(flock=flock, LOCK_EX=1, LOCK_SH=2, LOCK_NB=4))
    with pytest.raises(OSError, match="broken"):
        acquire(tmp_path / "lock")
