"""Which trainer to take, in one sentence, from the Dice of the validation cases."""

from __future__ import annotations

import math
from typing import NamedTuple

from pandas import DataFrame

from nnunet_dvcl.tools.experiment.statistics import compare, holm
from nnunet_dvcl.tools.pilot.schedule import ENOUGH

LEVEL = 0.05
"""Of significance."""
_LEARNED = 0.05  # mean Dice below which a training has found nothing yet


class Verdict(NamedTuple):
    """What a pilot comes to."""

    trainer: str | None  # to go on with; None: nobody knows
    sentence: str


class _Row(NamedTuple):
    """A trainer against the baseline."""

    trainer: str
    mean: float  # Dice, over those that both have a value for
    difference: float
    better: int  # number of pairs
    num_pairs: int
    p: float  # Holm's

    @property
    def effect(self) -> int:
        """1: helps, -1: harms, 0: does not differ."""
        return 0 if not self.p < LEVEL else 1 if self.difference > 0 else -1

    def describe(self, pairs: str, few: bool) -> str:
        """`pairs`: cases or patients; `few`: there are too few of them to call it an effect, or none."""
        what = {1: "helps", -1: "harms", 0: "does not differ"}[self.effect]
        if few:
            what = "looks better" if self.difference > 0 else "looks no better"
        numbers = f"{self.difference:+.3f}, better in {self.better} of {self.num_pairs} {pairs}"
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        return f"{self.trainer} {what} (mean Dice {self.mean:.3f}, {numbers}, {p})"


def judge(dice: DataFrame, steps: int, longest: int, pairs: str = "cases") -> Verdict:
    """The test is Wilcoxon's signed-rank test, two-sided, paired over the lines, corrected by Holm's procedure.

    With so few of them that no outcome could be significant the higher mean decides, and the sentence says so. With so
    few steps that a difference may not show yet, nothing is decided unless a trainer helps already.

    Args:
        dice: a line a case or patient, a column a trainer, the baseline first; nan where there is no value.
        steps: of each training.
        longest: steps of a full training.
        pairs: what the lines are, in words: "cases" or "patients".
    """
    baseline, *others = dice.columns
    means = dice.mean()
    if not means.max() >= _LEARNED:
        return Verdict(
            None,
            f"No trainer has learned anything in {steps} steps (largest mean Dice {means.max():.3f}), so nothing can "
            "be said: give more --hours, or a smaller configuration.",
        )
    rows = _compare(dice)
    least = _pairs_needed(len(others))
    few = max(row.num_pairs for row in rows) < least
    better = [row for row in rows if row.difference > 0 and (few or row.effect > 0)]
    trainer = max(better, key=lambda row: row.difference).trainer if better else baseline
    if steps < min(ENOUGH, longest) and not any(row.effect > 0 for row in rows):
        trainer, lead = None, "Too early to tell, give more --hours and another -o"
    elif few:
        lead = f"Only a tendency, as no test can tell with fewer than {least} {pairs}: take {trainer}"
    elif any(row.effect for row in rows):
        lead = f"Take {trainer}"
    else:
        lead = f"They do not differ, so take {baseline}, which costs least"
    corrected = ", corrected by Holm's procedure" if len(rows) > 1 else ""
    against = "it" if trainer == baseline else baseline
    others = "; ".join(row.describe(pairs, few) for row in rows)
    return Verdict(
        trainer,
        f"{lead}: against {against} (mean Dice {means[baseline]:.3f}) {others}; two-sided Wilcoxon signed-rank test, "
        f"paired over the validation {pairs}{corrected}, {steps} steps a training.",
    )


def _compare(dice: DataFrame) -> list[_Row]:
    baseline, *others = dice.columns
    tests = {trainer: compare(dice[trainer], dice[baseline]) for trainer in others}
    rows = []
    for (trainer, test), p in zip(tests.items(), holm([test.p for test in tests.values()]), strict=True):
        both = dice[[baseline, trainer]].dropna()
        better = int((both[trainer] > both[baseline]).sum())
        rows.append(_Row(trainer, both[trainer].mean(), test.difference, better, test.num_pairs, p))
    return rows


def _pairs_needed(num_comparisons: int) -> int:
    """The smallest p that n pairs can give is 2/2ⁿ, when all differ in one direction."""
    return math.floor(math.log2(2 * num_comparisons / LEVEL)) + 1
