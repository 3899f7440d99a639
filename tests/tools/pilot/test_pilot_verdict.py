"""What a pilot says: helps, harms, does not differ, too few cases to tell, nothing learned."""

import numpy as np
import pytest
from pandas import DataFrame

from nnunet_dvcl.tools.experiment.statistics import compare
from nnunet_dvcl.tools.pilot.picture import draw
from nnunet_dvcl.tools.pilot.verdict import judge

CASES = 12
LONG = 250_000
BASE = np.linspace(0.5, 0.8, CASES)
NOISE = 0.01 * np.resize([1, -1, 2, -2], CASES)  # for nobody


def dice(**trainers) -> DataFrame:
    return DataFrame({"Supervised": BASE, **{name: BASE + values for name, values in trainers.items()}})


def test_helps():
    table = dice(DVCL=0.05 + NOISE)
    verdict = judge(table, 2000, LONG)
    assert verdict.trainer == "DVCL"
    assert verdict.sentence.startswith("Take DVCL: against Supervised (mean Dice 0.650) DVCL helps (mean Dice 0.700, ")
    assert "+0.050, better in 12 of 12 cases, p < 0.001)" in verdict.sentence
    assert "Wilcoxon signed-rank test, paired over the validation cases, 2000 steps" in verdict.sentence
    assert compare(table["DVCL"], table["Supervised"]).p < 0.001


def test_harms():
    verdict = judge(dice(DVCL=NOISE - 0.05), 2000, LONG)
    assert verdict.trainer == "Supervised"
    assert verdict.sentence.startswith("Take Supervised: against it (mean Dice 0.650) DVCL harms (mean")
    assert "-0.050, better in 0 of 12 cases, p < 0.001)" in verdict.sentence


def test_does_not_differ():
    verdict = judge(dice(DVCL=NOISE), 2000, LONG)
    assert verdict.trainer == "Supervised"
    assert verdict.sentence.startswith("They do not differ, so take Supervised, which costs least: against it (")
    assert "DVCL does not differ (mean Dice 0.650, +0.000, better in 6 of 12 cases, p = 1.000)" in verdict.sentence


def test_the_best_of_those_that_help_is_taken_and_all_are_told():
    verdict = judge(dice(CPS=0.03 + NOISE, DVCL=0.05 + NOISE, MT=NOISE - 0.05, UAMT=NOISE), 2000, LONG)
    assert verdict.trainer == "DVCL"
    for words in ("CPS helps", "DVCL helps", "MT harms", "UAMT does not differ", "corrected by Holm's procedure"):
        assert words in verdict.sentence


def test_a_higher_mean_alone_does_not_win_over_one_that_helps():
    """One case makes the mean; the test does not see it."""
    one_case = np.where(np.arange(CASES) == 0, 0.45, 0.0) + NOISE / 10
    assert judge(dice(CPS=0.02 + NOISE / 10, DVCL=one_case), 2000, LONG).trainer == "CPS"


@pytest.mark.parametrize(("others", "least"), [(("DVCL",), 6), (("DVCL", "CPS"), 7), (("DVCL", "CPS", "MT"), 7)])
def test_with_too_few_cases_for_any_test_it_is_a_tendency(others, least):
    table = dice(**{name: 0.02 * (number + 1) + NOISE / 10 for number, name in enumerate(others)})
    few = judge(table[: least - 1], 2000, LONG)
    assert few.trainer == others[-1]
    assert f"Only a tendency, as no test can tell with fewer than {least} cases: take {others[-1]}" in few.sentence
    assert f"{others[-1]} looks better" in few.sentence
    enough = judge(table[:least], 2000, LONG)
    assert enough.sentence.startswith(f"Take {others[-1]}")


def test_patients_are_called_patients():
    table = dice(DVCL=0.05 + NOISE)
    few, enough = (judge(lines, 2000, LONG, "patients").sentence for lines in (table[:3], table))
    assert few.startswith("Only a tendency, as no test can tell with fewer than 6 patients: take DVCL: ")
    assert "better in 3 of 3 patients, p = 0.250)" in few
    assert "paired over the validation patients" in enough
    assert "cases" not in few + enough


def test_a_tendency_to_the_worse():
    few = judge(dice(DVCL=NOISE - 0.05)[:3], 2000, LONG)
    assert few.trainer == "Supervised"
    assert "DVCL looks no better" in few.sentence


def test_nothing_learned_is_not_a_tie():
    verdict = judge(dice(DVCL=NOISE) * 0.01, 300, LONG)
    assert verdict.trainer is None
    assert "No trainer has learned anything in 300 steps (largest mean Dice 0.007)" in verdict.sentence


def test_after_few_steps_no_difference_is_no_answer():
    for values in (NOISE, NOISE - 0.05):
        verdict = judge(dice(DVCL=values), 999, LONG)
        assert verdict.trainer is None
        assert verdict.sentence.startswith("Too early to tell, give more --hours and another -o: against Supervised")
        assert "999 steps a training" in verdict.sentence
    assert judge(dice(DVCL=NOISE + 0.02)[:3], 999, LONG).trainer is None
    assert judge(dice(DVCL=NOISE + 0.05), 999, LONG).trainer == "DVCL", "what helps already helps"


def test_a_pilot_as_long_as_the_full_training_is_not_too_early():
    assert judge(dice(DVCL=NOISE), 400, 400).trainer == "Supervised"


def test_cases_without_a_value_do_not_count():
    table = dice(DVCL=0.05 + NOISE)
    table.loc[0, "DVCL"] = np.nan
    assert "better in 11 of 11 cases" in judge(table, 2000, LONG).sentence


def test_the_picture_has_a_line_a_case_and_a_bar_at_each_mean():
    table = dice(DVCL=0.05 + NOISE)
    (axes,) = draw(table, judge(table, 2000, LONG).sentence).axes
    assert [line.get_ydata().tolist() for line in axes.lines] == table.to_numpy().tolist()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["Supervised", "DVCL"]
    assert [text.get_text() for text in axes.texts] == ["0.650", "0.700"]
    assert axes.get_title(loc="left").startswith("Take DVCL")
    assert "validation cases" in axes.get_ylabel()
    assert "validation patients" in draw(table, "", "patients").axes[0].get_ylabel()
