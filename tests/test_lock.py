"""Who has a lock, who waits for it, and when it is free again."""

import subprocess
import sys
import threading
from types import SimpleNamespace

from nnunet_dvcl import lock
from nnunet_dvcl.lock import acquire, is_held, locked

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
