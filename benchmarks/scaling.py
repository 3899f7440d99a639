"""6. How time and memory grow: the slope of log cost over log size, 1 for linear, 0 for flat."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from benchmarks.compare import peak_bytes_of, seconds_of
from benchmarks.parts import K, U, select
from nnunet_dvcl.losses.neighborhoods import find_neighborhoods


@dataclass
class Scaling:
    """Median seconds and peak bytes of one function over one dimension of its input."""

    name: str
    dimension: str
    values: list[int]
    seconds: list[float]
    peak_bytes: list[int]

    def slope(self, costs: list[float]) -> float:
        """Of the last half of the points, where fixed costs no longer count; nan where a cost is 0."""
        half = len(self.values) // 2
        values, costs = self.values[half:], costs[half:]
        if min(costs) <= 0:
            return float("nan")
        return float(np.polyfit(np.log(values), np.log(costs), 1)[0])

    def as_dict(self) -> dict:
        slopes = {"time_slope": self.slope(self.seconds), "memory_slope": self.slope(self.peak_bytes)}
        return asdict(self) | slopes


def scalings(device: torch.device, repeats: int) -> list[Scaling]:
    voxels = [2**n for n in range(14, 21)]
    classes = [2, 4, 8, 16, 32]
    candidates = [2**n for n in range(10, 16)]
    queries = [2**n for n in range(7, 13)]
    widths = [16, 32, 64, 128, 256]

    def selection(n: int, c: int):
        logits = torch.randn(1, c, 1, 1, n, device=device)
        return lambda: select(logits)

    def search(q: int, n: int, d: int):
        features = torch.randn(n, d, device=device)
        rows = torch.randperm(n, device=device)[:q]
        return lambda: find_neighborhoods(features, rows, K, K, U)

    cases: list[tuple[str, str, list[int], Callable]] = [
        ("entropy split and draws", "voxels", voxels, lambda n: selection(n, 4)),
        ("entropy split and draws", "classes", classes, lambda c: selection(2**17, c)),
        ("neighbor search", "queue capacity", candidates, lambda n: search(512, n, 64)),
        ("neighbor search", "queries", queries, lambda q: search(q, 8192, 64)),
        ("neighbor search", "feature dimension", widths, lambda d: search(512, 8192, d)),
    ]
    return [_scale(name, dimension, values, make, device, repeats) for name, dimension, values, make in cases]


def _scale(name: str, dimension: str, values: list[int], make: Callable, device, repeats: int) -> Scaling:
    seconds, peaks = [], []
    for value in values:
        call = make(value)
        call()
        seconds.append(statistics.median(seconds_of(call, device) for _ in range(repeats)))
        peaks.append(peak_bytes_of(call, device))
    return Scaling(name, dimension, values, seconds, peaks)
