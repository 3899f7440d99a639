"""What was learned and unlearned of a class, and how low its Dice is."""

import math
from itertools import pairwise

import pytest
import torch

from nnunet_dvcl.memory import ClassDifficulty

CURVES = [[0.2, 0.5, 0.8, 0.85], [0.6, 0.3, 0.5, 0.2], [0.9, 0.92, 0.94, 0.9]]  # the Dice of each class, step by step


def naive_difficulty(curves: list[list[float]], memory: int, power: float) -> list[float]:
    """DHC: s = Δ·log(λ / λ_last) averaged over τ steps, apart for Δ > 0 and Δ < 0; (unlearned / learned)^α·(1 - λ)."""
    hard = []
    for curve in curves:
        learned = unlearned = 0.0
        missing = 1 - curve[0]
        for last, now in pairwise(curve):
            moved = (now - last) * math.log(now / last)
            learned += ((moved if now > last else 0.0) - learned) / memory
            unlearned += ((moved if now < last else 0.0) - unlearned) / memory
            missing += (1 - now - missing) / memory
        hard.append(((unlearned + 1e-8) / (learned + 1e-8)) ** power * missing)
    return [x / max(hard) for x in hard]


def _after(curves, memory=5, power=0.2) -> ClassDifficulty:
    difficulty = ClassDifficulty(len(curves), 1, memory, power)
    for dice in zip(*curves, strict=True):
        difficulty.update(torch.tensor(dice)[:, None], torch.ones(len(curves), 1, dtype=torch.bool))
    return difficulty


@pytest.mark.parametrize(("memory", "power"), [(5, 0.2), (2, 1.0), (50, 0.0)])
def test_equals_the_loop(memory, power):
    given = _after(CURVES, memory, power).difficulty()[:, 0].tolist()
    assert given == pytest.approx(naive_difficulty(CURVES, memory, power), rel=1e-3)


def test_a_class_that_falls_is_harder_than_one_that_rises():
    """At the same Dice: the idea."""
    risen, fallen = _after([[0.1, 0.3, 0.5], [0.9, 0.7, 0.5], [0.5, 0.5, 0.5]], memory=50).difficulty()[:2, 0]
    assert fallen == 1
    assert risen < 0.5


def test_an_absent_class_stays_what_it_was():
    difficulty = _after(CURVES)
    before = {key: value.clone() for key, value in difficulty.state_dict().items()}
    here = torch.tensor([[True], [False], [True]])
    difficulty.update(torch.tensor([[0.9], [1e-6], [math.nan]]), here)
    for key, value in difficulty.state_dict().items():
        assert torch.equal(value[1:], before[key][1:]), key
    assert difficulty.last_dice[0] == 0.9


def test_values_are_finite_where_nothing_was_learned():
    difficulty = ClassDifficulty(3, 2, 50, 0.2)
    assert (difficulty.difficulty() == 1).all()
    present = torch.tensor([[True, True], [True, False], [False, False]])
    for dice in (0.0, 1.0, 0.0, 0.5):
        difficulty.update(torch.full((3, 2), dice), present)
        given = difficulty.difficulty()
        assert given.isfinite().all()
        assert (given.amax(0) == 1).all()
        assert (given[2] == 1).all(), "not seen: as hard as the hardest"
