"""Statistics against loops over all signs, and by hand."""

import itertools
import math

import numpy as np
import pytest

from nnunet_dvcl.tools.experiment.statistics import compare, holm


def naive_wilcoxon(differences: list[float]) -> float:
    """Exact two-sided p: the share of all assignments of signs with a rank sum as extreme; no ties."""
    ranks = [1 + sum(abs(other) < abs(d) for other in differences) for d in differences]
    total = sum(ranks)

    def extreme(signs) -> float:
        plus = sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
        return min(plus, total - plus)

    observed = extreme([d > 0 for d in differences])
    everything = [extreme(signs) for signs in itertools.product((False, True), repeat=len(ranks))]
    return sum(value <= observed for value in everything) / len(everything)


def test_the_paired_test_is_wilcoxons():
    rng = np.random.default_rng(1)
    first, second = rng.normal(0.4, 1, 9), rng.normal(0, 1, 9)
    test = compare(first, second)
    assert test.p == pytest.approx(naive_wilcoxon(list(first - second)))
    assert test.difference == pytest.approx(np.mean(first - second))
    assert compare(second, first).p == pytest.approx(test.p)


def test_cases_without_one_of_the_values_are_left_out():
    first, second = [0.5, math.nan, 0.7, 0.9, 0.8], [0.4, 0.1, math.nan, 0.7, 0.5]
    test = compare(first, second)
    assert test.num_pairs == 3
    assert test.difference == pytest.approx((0.1 + 0.2 + 0.3) / 3)
    assert test.p == pytest.approx(naive_wilcoxon([0.1, 0.2, 0.3]))


def test_nothing_to_compare():
    assert compare([0.5, 0.6], [0.5, 0.6]).p == 1
    assert math.isnan(compare([math.nan], [1.0]).p)
    assert compare([math.nan], [1.0]).num_pairs == 0


def test_holm_by_hand():
    """Holm 1979: the smallest times 4, the next times 3, ...; never below an earlier one, never above 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert holm([]) == []


def test_holm_does_not_count_what_is_no_test():
    assert holm([0.02, math.nan, 0.03]) == pytest.approx([0.04, math.nan, 0.04], nan_ok=True)
