"""Means, spreads and paired tests of values that some cases do not have."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import wilcoxon


def mean_of(values: np.ndarray, axis: int | None = None) -> np.ndarray | float:
    """The mean of the values that are there; nan where none is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of an empty slice
        return np.nanmean(values, axis)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1) of the values of the seeds; with one seed there is no spread: nan."""
    values = np.asarray(values, dtype=float)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan


class PairedTest(NamedTuple):
    """A two-sided Wilcoxon signed-rank test."""

    difference: float  # mean of first minus second
    num_cases: int  # that have both values
    p: float


def compare(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    """Tests two lists with a value a case, in the same order; cases without one of the two are left out.

    Equal pairs count neither for nor against, as Wilcoxon had it. When all are equal, p is 1; without any pair, nan.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    both = np.isfinite(first) & np.isfinite(second)
    differences = first[both] - second[both]
    if not len(differences):
        return PairedTest(math.nan, 0, math.nan)
    p = float(wilcoxon(differences, zero_method="wilcox").pvalue) if differences.any() else 1.0
    return PairedTest(float(differences.mean()), len(differences), p)


def holm(p: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, by Holm's step-down procedure (1979); nan is no test and stays nan."""
    order = sorted((i for i, value in enumerate(p) if not math.isnan(value)), key=lambda i: p[i])
    corrected, largest = [math.nan] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[index]))
        corrected[index] = largest
    return corrected
