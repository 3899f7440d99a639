"""Two functions timed in turns, so that whatever else the machine does falls on both."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch

from nnunet_dvcl.tools.footprint import peak_bytes

CPU = torch.device("cpu")


@dataclass
class Comparison:
    """What `compare` measured: seconds of each repeat, and the peak bytes of one call's tensors."""

    name: str
    ours: str
    theirs: str
    target: float | None
    seconds: dict[str, list[float]]
    peak_bytes: dict[str, int]
    size: str = ""
    notes: dict[str, float | str] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """Ours over theirs, turn by turn."""
        return [a / b for a, b in zip(self.seconds[self.ours], self.seconds[self.theirs], strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile of the ratios."""
        if len(self.ratios) < 2:
            return self.ratio, self.ratio
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high

    @property
    def memory_ratio(self) -> float | None:
        ours, theirs = self.peak_bytes[self.ours], self.peak_bytes[self.theirs]
        return ours / theirs if theirs else None

    def as_dict(self) -> dict:
        low, high = self.spread
        derived = {"ratio": self.ratio, "ratio_q1": low, "ratio_q3": high, "memory_ratio": self.memory_ratio}
        return asdict(self) | derived


def compare(
    name: str,
    ours: tuple[str, Callable[[], object]],
    theirs: tuple[str, Callable[[], object]],
    *,
    target: float | None = None,
    repeats: int = 10,
    warmup: int = 2,
    device: torch.device = CPU,
    size: str = "",
    memory: bool = True,
) -> Comparison:
    """Runs both in turns, the order changing each time, after a warm-up of both.

    Args:
        name: what is compared, for the table.
        ours: its name and a function of no arguments; one call is one measurement.
        theirs: the same of the other side, below the fraction bar.
        target: the ratio that is wanted at most, or at least where `name` says so.
        repeats: measurements of each side.
        warmup: unmeasured calls of each side before.
        device: where the functions compute.
        size: the size's name, for the table.
        memory: measure the peak too, with one more call of each side.
    """
    sides = dict((ours, theirs))
    for _ in range(warmup):
        for call in sides.values():
            call()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(repeats):
        order = list(sides) if turn % 2 == 0 else list(sides)[::-1]
        for side in order:
            seconds[side].append(seconds_of(sides[side], device))
    peaks = {side: peak_bytes_of(call, device) if memory else 0 for side, call in sides.items()}
    return Comparison(name, ours[0], theirs[0], target, seconds, peaks, size)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call. On a CPU those that it computed, which other processes hardly lengthen."""
    if device.type == "cpu":
        start = _cpu_seconds()
        call()
        return _cpu_seconds() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak_bytes_of(call: Callable[[], object], device: torch.device) -> int:
    """The most that the tensors made by one call hold at once: not what was there before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    return peak_bytes(call)


def _cpu_seconds() -> float:
    """Of this process and of the children that it waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
