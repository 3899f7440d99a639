"""Paired tests of values that some cases do not have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pandas import Series
from scipy.stats import wilcoxon


class PairedTest(NamedTuple):
    """A two-sided Wilcoxon signed-rank test."""

    difference: float  # mean of first minus second
    num_pairs: int  # that have both values
    p: float


def compare(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    """Tests two lists of values of the same patients, in the same order; who lacks one of the two is left out.

    Equal pairs count neither for nor against, as Wilcoxon had it. When all are equal, p is 1; without any pair, nan.
    """
    differences = np.subtract(first, second)
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        return PairedTest(math.nan, 0, math.nan)
    p = float(wilcoxon(differences, zero_method="wilcox").pvalue) if differences.any() else 1.0
    return PairedTest(float(differences.mean()), len(differences), p)


def holm(p: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, by Holm's step-down procedure (1979); nan is no test and stays nan."""
    values = Series(p, dtype=float).reset_index(drop=True)
    ascending = values.dropna().sort_values()
    corrected = (ascending * np.arange(len(ascending), 0, -1)).clip(upper=1).cummax()
    return corrected.reindex(values.index).tolist()
