"""How far a long work is, and how long it will take: a bar on a terminal, elsewhere a line a minute at most."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TypeVar

from tqdm import tqdm

LINES_APART = 60.0  # seconds
TIMED = 20
"""So many units, and it is told how long all of them will take."""
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_inv_fmt}{postfix}]"
_LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_inv_fmt}{postfix}]"

Item = TypeVar("Item")

beside_bars = tqdm.external_write_mode
"""A block that prints while bars are shown."""


class Progress:
    """Counts what is done of a number of like units, and shows it on stderr."""

    def __init__(self, title: str, total: int, unit: str, shown: bool = True, leave: bool = False) -> None:
        """
        Args:
            title: what is done.
            total: the number of units.
            unit: one of them.
            shown: False on all ranks but one.
            leave: whether the bar stays when it is full.
        """
        self.total, self.done = total, 0
        self._words = {"prefix": title, "unit": unit}
        self._began = self._told = time.monotonic()
        on_terminal = shown and sys.stderr.isatty()
        self._in_lines = shown and not on_terminal
        self._bar = None
        if on_terminal:
            look = {"leave": leave, "bar_format": _BAR, "dynamic_ncols": True}
            # the mean time, as in the lines; drawn after each unit, as the next one may take long
            self._bar = _Bar(total=total, desc=title, unit=unit, smoothing=0, miniters=1, mininterval=0, **look)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def advance(self, note: str = "") -> None:
        """One unit more is done; the note stands behind the numbers."""
        self.done += 1
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update()
        elif self._in_lines and time.monotonic() - self._told >= LINES_APART:
            self._write_line(note)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _write_line(self, note: str) -> None:
        self._told = time.monotonic()
        sys.stdout.flush()  # else what was printed before comes after it, where both go into one file
        line = tqdm.format_meter(self.done, self.total, self.seconds, bar_format=_LINE, postfix=note, **self._words)
        print(line, file=sys.stderr, flush=True)


class _Bar(tqdm):
    monitor_interval = 0  # no thread: trainings fork their workers


def with_progress(
    items: Iterable[Item],
    title: str,
    total: int,
    unit: str,
    log: Callable[[str], object],
    shown: bool = True,
    leave: bool = False,
) -> Iterator[Item]:
    """The items, as `Progress` that counts them; `log` is told how long all of them will take."""
    with closing(Progress(title, total, unit, shown, leave)) as progress:
        for item in items:
            yield item
            progress.advance()
            if progress.done == TIMED < total:
                with beside_bars():
                    log(f"{title}: about {in_words(progress.seconds / TIMED * total)} in all")


def in_words(seconds: float) -> str:
    """About so long."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"
