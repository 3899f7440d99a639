"""How far a long work is: a bar on a terminal, a line a minute elsewhere, nothing on other ranks."""

import io
import re
import sys
from types import SimpleNamespace

import pytest

from nnunet_dvcl import progress
from nnunet_dvcl.progress import Progress, beside_bars, in_words, with_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def open_terminal(monkeypatch):
    """Stdout and stderr from then on; pytest itself sets them between the fixtures and the test."""

    def open_it() -> Terminal:
        screen = Terminal()
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setattr(sys, "stderr", screen)
        return screen

    return open_it


@pytest.fixture
def clock(monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    return seconds


def test_a_file_gets_a_line_a_minute(capsys, clock):
    shown = Progress("Epoch 3", 250, "step")
    for _ in range(200):
        clock[0] += 1
        shown.advance("training: 5 h left")
    shown.close()
    assert capsys.readouterr().err.splitlines() == [
        "Epoch 3: 60/250 [01:00<03:10,  1.00s/step, training: 5 h left]",
        "Epoch 3: 120/250 [02:00<02:10,  1.00s/step, training: 5 h left]",
        "Epoch 3: 180/250 [03:00<01:10,  1.00s/step, training: 5 h left]",
    ]


def test_a_line_comes_after_what_was_printed_before(monkeypatch, clock):
    file = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(file))
    print("nnU-Net's line")
    shown = Progress("Epoch 3", 2, "step")
    clock[0] = 70
    shown.advance()
    assert file.getvalue().decode().splitlines() == ["nnU-Net's line", "Epoch 3: 1/2 [01:10<01:10, 70.00s/step]"]


def test_a_terminal_gets_a_bar_that_goes_away(open_terminal):
    terminal = open_terminal()
    shown = Progress("Epoch 3", 4, "step")
    for _ in range(3):
        shown.advance("training: 5 h left")
    assert re.search(r"\rEpoch 3:  75%\|.*\| 3/4 \[.*s/step, training: 5 h left\]$", terminal.getvalue())
    assert "\n" not in terminal.getvalue()
    shown.close()
    assert re.search(r"\r +\r$", terminal.getvalue())


def test_what_is_printed_beside_a_bar_is_a_line_of_its_own(open_terminal):
    terminal = open_terminal()
    shown = Progress("Epoch 3", 4, "step")
    shown.advance()
    with beside_bars():
        print("nnU-Net's line")
    assert re.search(r"\r +\rnnU-Net's line\n\rEpoch 3:  25%", terminal.getvalue())
    shown.close()


def test_other_ranks_show_nothing(open_terminal, clock):
    terminal = open_terminal()
    shown = Progress("Epoch 3", 4, "step", shown=False)
    clock[0] = 1000
    shown.advance()
    shown.close()
    assert terminal.getvalue() == ""


def test_after_20_it_is_told_how_long_all_take(clock):
    told, items = [], []
    for item in with_progress(range(400), "Unlabeled scans", 400, "scan", lambda text: told.append((clock[0], text))):
        items.append(item)
        clock[0] += 30
    assert items == list(range(400))
    assert told == [(600, "Unlabeled scans: about 3.3 h in all")]
    assert list(with_progress(range(20), "Few", 20, "scan", told.append)) == list(range(20))
    assert len(told) == 1


def test_an_error_ends_the_bar(open_terminal):
    terminal = open_terminal()

    def items():
        yield 1
        raise ValueError("a scan that cannot be used")

    with pytest.raises(ValueError, match="a scan"):
        list(with_progress(items(), "Unlabeled scans", 3, "scan", print, leave=True))
    assert terminal.getvalue().endswith("\n")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4.4, "4 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "1.5 h"), (35_000, "9.7 h"), (5e5, "139 h")],
)
def test_durations_are_told_as_one_would(seconds, words):
    assert in_words(seconds) == words
