"""The tables of finished runs whose predictions are known."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_data import read_image, write_image

from nnunet_dvcl.cli import main
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.experiment import runner
from nnunet_dvcl.tools.experiment.metrics import METRICS
from nnunet_dvcl.tools.experiment.prepare import Cases, read_cases
from nnunet_dvcl.tools.experiment.report import draw, latex, markdown
from nnunet_dvcl.tools.experiment.results import collect
from nnunet_dvcl.tools.experiment.runner import run_experiment
from nnunet_dvcl.tools.experiment.runs import all_runs
from nnunet_dvcl.tools.experiment.statistics import PairedTest, compare

GOLDEN = Path(__file__).parent / "golden_report.md"
TEST = {"labeled": ["50%"], "folds": 2, "test": 0.5}
BASE, OURS = "nnUNetTrainer", "nnUNetTrainerSupervised"
NAMES = ["configuration", "labeled", "row", "trainer"]
ROWS = [BASE, {"trainer": OURS, "title": "Ours & co"}]


@pytest.fixture
def trial(place, fakes, monkeypatch):
    """``trial(**changes)``: an experiment whose runs are done; every prediction is the truth."""
    monkeypatch.setattr(runner, "_POLL", 0.02)

    def run(**changes):
        here = place(**{"splits": TEST, "trainers": ROWS, "seeds": [0, 1]} | changes)
        assert run_experiment(here) == 0
        return here

    return run


def spoil(here, row: str, seed: int, change) -> None:
    """Puts other predictions in the place of a seed's; `change` gets the labels and the number of the case."""
    for run in all_runs(here.experiment):
        if (run.row.name, run.seed) == (row, seed):
            for index, file in enumerate(sorted(here.predictions(run).glob("*.nii.gz"))):
                write_image(file, change(read_image(file), index).astype(np.uint8))


def predict_validation_cases(here) -> Cases:
    """Every prediction is the truth, for a trial without test cases."""
    cases = read_cases(here)
    for run in all_runs(here.experiment):
        for case in cases.splits[run.split]["val"]:
            write_image(here.predictions(run) / f"{case}.nii.gz", read_image(here.truth / f"{case}.nii.gz"))
    return cases


def shifted(labels: np.ndarray, index: int) -> np.ndarray:
    return np.roll(labels, 1 + index, axis=2)


def without_small(labels: np.ndarray, index: int) -> np.ndarray:
    """Label 2 is missed in the first case."""
    return np.where(labels == 2, 0, labels) if index == 0 else labels


def of_organs(results, row: str, metric: str = "Dice"):
    """The lines of the table of a row in the only group: the organs, and last their mean."""
    return results.table.xs((row, metric), level=("row", "metric"))


def seeds(results, row: str) -> tuple[int, ...]:
    return tuple(results.cases.xs(row, level="row").index.unique("seed"))


def value(results, row: str, seed: int, case: str, organ: str, metric: str) -> float:
    (found,) = results.cases.xs((row, seed, case, organ), level=("row", "seed", "case", "organ"))[metric]
    return found


def test_the_whole_report(trial, tmp_path, capsys):
    """As it was looked at once; a change of the text is a change of this file."""
    here = trial(report={"baseline": "nnUNetTrainer", "tolerance_mm": 1})
    spoil(here, "nnUNetTrainerSupervised", 0, shifted)
    spoil(here, "nnUNetTrainerSupervised", 1, without_small)
    assert main(["experiment", "report", str(here.experiment.file), "-o", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out/report.md").read_text()
    assert text in capsys.readouterr().out
    text = re.sub(r"nnunet_dvcl \d\S*\.", "nnunet_dvcl VERSION.", text)
    assert text == GOLDEN.read_text()
    for name in ("dice.png", "dice.svg", "table.csv", "cases.csv", "tables.tex"):
        assert (tmp_path / "out" / name).stat().st_size > 100
    assert not list((tmp_path / "out").glob("*.partial*"))


def test_the_picture_has_a_box_a_row_in_a_panel_an_organ(trial):
    here = trial(report={"baseline": "nnUNetTrainer"})
    spoil(here, "nnUNetTrainerSupervised", 0, shifted)
    results = collect(here, read_cases(here))
    panels = draw(results, "nnUNetTrainer").axes
    titles = [label.get_text() for label in panels[0].get_yticklabels()]
    assert titles == list(results.cases.index.unique("title"))
    assert [panel.get_xlabel() for panel in panels] == [
        f"Dice, {organ}" for organ in results.cases.index.unique("organ")
    ]
    rows = results.cases.index.unique("row")
    for panel, organ in zip(panels, results.cases.index.unique("organ"), strict=True):
        dice = results.cases["Dice"].xs(organ, level="organ")
        medians = [dice.xs(row, level="row").groupby("case").mean().median() for row in rows]
        lines = [line.get_xydata() for line in panel.lines if len(line.get_xydata()) == 2]
        drawn = {y.mean(): x[0] for x, y in (line.T for line in lines) if np.ptp(y) == pytest.approx(0.7)}
        assert drawn == pytest.approx(dict(enumerate(medians)))
        assert panel.get_ylim()[0] > panel.get_ylim()[1], "the first row is on top"
        (dashed,) = [line for line in panel.lines if line.get_linestyle() == "--"]
        assert dashed.get_xdata()[0] == medians[list(rows).index("nnUNetTrainer")]
    assert not [line for panel in draw(results, None).axes for line in panel.lines if line.get_linestyle() == "--"]


def test_the_values_are_means_of_cases_then_of_seeds(trial):
    here = trial(report={"baseline": "nnUNetTrainer"})
    spoil(here, "nnUNetTrainerSupervised", 0, shifted)
    spoil(here, "nnUNetTrainerSupervised", 1, without_small)
    results = collect(here, read_cases(here))
    naive = []  # [seed][organ]
    test = read_cases(here).test
    for seed in (0, 1):
        (run,) = [r for r in all_runs(here.experiment) if r.row.name == "nnUNetTrainerSupervised" and r.seed == seed]
        of_cases = []
        for case in test:
            truth = read_image(here.truth / f"{case}.nii.gz")
            prediction = read_image(here.predictions(run) / f"{case}.nii.gz")
            overlap = [
                (2 * ((truth == k) & (prediction == k)).sum(), (truth == k).sum() + (prediction == k).sum())
                for k in (1, 2)
            ]
            of_cases.append([a / b for a, b in overlap])
        naive.append(np.mean(of_cases, axis=0))
    naive = np.array(naive)
    row = of_organs(results, OURS)
    pairs = row[["mean", "std"]].to_numpy()
    for organ in (0, 1):
        assert pairs[organ] == pytest.approx((naive[:, organ].mean(), naive[:, organ].std(ddof=1)))
    assert pairs[2] == pytest.approx((naive.mean(), naive.mean(1).std(ddof=1)))
    assert list(row["missed"][:2]) == [0, 0.5]
    assert list(row["present"][:2]) == [3, 3]
    assert all(of_organs(results, BASE)["mean"] == 1)


def test_the_missed_organ_has_no_distance_and_no_overlap(trial):
    here = trial()
    spoil(here, "nnUNetTrainerSupervised", 1, without_small)
    results = collect(here, read_cases(here))
    missed = (OURS, 1, read_cases(here).test[0], "small")
    assert math.isnan(value(results, *missed, "HD95"))
    assert value(results, *missed, "NSD") == 0
    assert tuple(of_organs(results, OURS, "HD95")[["mean", "std"]].iloc[1]) == (0, 0)


def test_an_organ_that_is_missed_in_all_cases_of_a_seed_has_no_mean_distance(trial):
    """Nor has the mean over the organs, as in nnU-Net's summary.json; the tests take the cases that have a value."""
    here = trial(report={"baseline": BASE})
    spoil(here, OURS, 1, lambda labels, index: np.where(labels == 2, 0, labels))
    row = of_organs(collect(here, read_cases(here)), OURS, "HD95")
    assert list(row["mean"]) == pytest.approx([0, math.nan, math.nan], nan_ok=True)
    assert list(row["std"]) == pytest.approx([0, math.nan, math.nan], nan_ok=True)
    assert (row["difference"].iloc[2], row["num_pairs"].iloc[2]) == (0, 3)


def test_found_where_it_is_not(trial):
    here = trial(seeds=[0])
    case = read_cases(here).test[0]
    for file in (here.truth / f"{case}.nii.gz",):
        write_image(file, np.where(read_image(file) == 2, 1, read_image(file)).astype(np.uint8))
    results = collect(here, read_cases(here))
    row = of_organs(results, OURS)
    assert list(row["false_alarm"][:2]) == [0, 1]
    assert list(row["present"][:2]) == [3, 2]
    assert value(results, OURS, 0, case, "small", "Dice") == 0


def test_the_test_is_paired_over_cases_with_means_over_seeds_and_organs(trial):
    here = trial(report={"baseline": "nnUNetTrainer"})
    spoil(here, "nnUNetTrainerSupervised", 0, shifted)
    results = collect(here, read_cases(here))
    base, row = (results.cases["Dice"].xs(name, level="row").groupby("case").mean() for name in (BASE, OURS))
    expected = compare(row, base)
    test = of_organs(results, OURS).loc[:, PairedTest._fields].iloc[-1]
    assert tuple(test) == expected
    assert of_organs(results, OURS)["p_holm"].iloc[-1] == expected.p  # one comparison
    assert test["difference"] < 0
    assert test["num_pairs"] == 3


PATIENTS = r"case_[0-2]|case(?=_[3-5])"  # three of one case each, and one of three


def test_cases_of_a_patient_count_as_one_in_the_test(trial):
    here = trial(
        splits={"labeled": ["50%"], "folds": 2, "use": [0, 1]}, report={"baseline": BASE, "group_by": PATIENTS}
    )
    cases = predict_validation_cases(here)
    spoil(here, OURS, 0, shifted)
    results = collect(here, cases)

    def of_patients(row: str) -> list[float]:
        dice = results.cases["Dice"].xs(row, level="row")
        means = {case: dice.xs(case, level="case").mean() for case in dice.index.unique("case")}
        return [*(means[f"case_{i}"] for i in range(3)), np.mean([means[f"case_{i}"] for i in range(3, 6)])]

    test = of_organs(results, OURS).iloc[-1]
    assert tuple(test[[*PairedTest._fields]]) == pytest.approx(compare(of_patients(OURS), of_patients(BASE)))
    assert test["num_pairs"] == 4
    assert test["cases"] == 6
    text = markdown(here, cases, results)
    assert "paired over the patients; the value of a case is the mean" in text
    assert "that of a patient the mean over the cases" in text
    assert "| Dice difference | p (patients) |" in text


def test_a_pattern_that_finds_no_patient_ends_it_before_any_training(trial, fakes):
    with pytest.raises(UserError, match=r"'p\[0-9\]\+' finds no group in these cases"):
        trial(report={"baseline": BASE, "group_by": "p[0-9]+"})
    assert not fakes.calls


def test_the_patients_of_the_splits_are_those_of_the_test(place):
    splits = {**TEST, "group_by": "case_[0-9]"}
    assert place(splits=splits).experiment.patient_pattern == "case_[0-9]"
    assert place(splits=splits, report={"group_by": PATIENTS}).experiment.patient_pattern == PATIENTS
    assert place(splits={"keep": {"all": 0}}, trainers=ROWS).experiment.patient_pattern is None


def test_holm_counts_the_comparisons_of_all_groups(trial):
    here = trial(
        splits={**TEST, "labeled": ["50%", "100%"]},
        trainers=[*ROWS, "nnUNetTrainerSupervised_5epochs"],
        seeds=[0],
        report={"baseline": "nnUNetTrainer"},
    )
    for run in all_runs(here.experiment):
        if run.row.name != "nnUNetTrainer":
            for index, file in enumerate(sorted(here.predictions(run).glob("*.nii.gz"))):
                write_image(file, shifted(read_image(file), index))
    results = collect(here, read_cases(here))
    dice = results.table.xs("Dice", level="metric").dropna(subset="p")
    assert len(dice) == 4
    assert list(dice["p_holm"]) == pytest.approx(list((4 * dice["p"]).clip(upper=1)))


def test_unfinished_runs_are_named_and_other_seeds_still_count(trial):
    here = trial(report={"baseline": "nnUNetTrainer"})
    run = all_runs(here.experiment)[-1]
    (here.predictions(run) / "experiment_run.json").unlink()
    results = collect(here, read_cases(here))
    assert results.unfinished == [run]
    assert (seeds(results, BASE), seeds(results, OURS)) == ((0, 1), (0,))
    assert list(of_organs(results, OURS)["seeds"]) == [1, 1, 1]
    training = run.name.removesuffix("__seed1")
    assert f"1 of the runs**: {training} (seed 1)." in markdown(here, read_cases(here), results)


def test_unfinished_seeds_of_one_training_are_named_together(trial):
    here = trial(report={"baseline": "nnUNetTrainer"})
    runs = all_runs(here.experiment)
    results = replace(collect(here, read_cases(here)), unfinished=runs)
    first, second = (run.name.removesuffix("__seed0") for run in runs[:2])
    assert f"4 of the runs**: {first} (seeds 0, 1), {second} (seeds 0, 1)." in markdown(here, read_cases(here), results)


def test_without_test_cases_the_folds_together_are_the_cases(trial, tiny_dataset):
    """Each case validates in one fold. The report says what it means that there are no test cases."""
    here = trial(splits={"labeled": ["50%"], "folds": 2, "use": [0, 1]}, seeds=[0])
    cases = predict_validation_cases(here)
    results = collect(here, cases)
    assert tuple(results.cases.xs(BASE, level="row").index.unique("case")) == tiny_dataset.labeled
    assert of_organs(results, BASE)["mean"].iloc[2] == 1
    assert list(of_organs(results, BASE)["cases"]) == [len(tiny_dataset.labeled)] * 3
    assert "validation cases of each fold; there are no test cases" in markdown(here, cases, results)


def test_a_seed_that_lacks_a_fold_does_not_count(trial):
    """Its cases would be missing in its mean."""
    here = trial(splits={**TEST, "use": [0, 1]})
    run = all_runs(here.experiment)[-1]
    assert (run.fold, run.seed) == (1, 1)
    (here.predictions(run) / "experiment_run.json").unlink()
    results = collect(here, read_cases(here))
    assert (seeds(results, BASE), seeds(results, OURS)) == ((0, 1), (0,))


def test_no_seed_has_all_its_folds(trial):
    here = trial(splits={**TEST, "use": [0, 1]}, seeds=[0])
    for run in all_runs(here.experiment):
        if run.fold == 1:
            (here.predictions(run) / "experiment_run.json").unlink()
    with pytest.raises(UserError, match=r"No seed of .* has all its folds yet"):
        collect(here, read_cases(here))


def test_the_order_is_that_of_the_file_whatever_is_finished(trial):
    here = trial(splits={**TEST, "labeled": ["50%", "100%"]}, trainers=[*reversed(ROWS)])
    first = all_runs(here.experiment)[0]
    (here.predictions(first) / "experiment_run.json").unlink()
    index = collect(here, read_cases(here)).table.index
    assert list(index.droplevel(["configuration", "title", "trainer", "metric", "organ"]).unique()) == [
        ("50 %", OURS),
        ("50 %", BASE),
        ("100 %", OURS),
        ("100 %", BASE),
    ]
    assert list(index.unique("metric")) == list(METRICS)
    assert list(index.unique("organ")) == ["large", "small", "mean"]


def test_the_csv_of_the_cases_is_complete(trial, tmp_path):
    here = trial(seeds=[0])
    main(["experiment", "report", str(here.experiment.file), "-o", str(tmp_path)])
    with open(tmp_path / "cases.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 2
    assert {row["Dice"] for row in rows} == {"1.0"}
    assert list(rows[0]) == [*NAMES, "seed", "case", "organ", *METRICS, "missed", "false_alarm"]


def test_the_csv_of_the_table(trial, tmp_path):
    """A cell is empty where there can be no number, and nan where there could be one."""
    here = trial(seeds=[0], report={"baseline": BASE})
    spoil(here, OURS, 0, lambda labels, index: np.zeros_like(labels))
    main(["experiment", "report", str(here.experiment.file), "-o", str(tmp_path)])
    assert (tmp_path / "table.csv").read_bytes().count(b"\r\n") == 1 + 2 * 4 * 3
    with open(tmp_path / "table.csv") as file:
        rows = list(csv.DictReader(file))
    sizes = ["seeds", "cases", "missed", "false_alarms", "difference", "p_holm"]
    assert list(rows[0]) == [*NAMES, "metric", "organ", "mean", "std", *sizes]
    rows = {(row["row"], row["metric"], row["organ"]): list(row.values())[-8:] for row in rows}
    assert rows[BASE, "Dice", "small"] == ["1.0", "nan", "1", "3", "0.0", "0.0", "", ""]
    assert rows[OURS, "Dice", "small"] == ["0.0", "nan", "1", "3", "3.0", "0.0", "", ""]
    assert rows[OURS, "Dice", "mean"] == ["0.0", "nan", "1", "3", "", "", "-1.0", "0.25"]
    assert rows[OURS, "HD95", "mean"] == ["nan", "nan", "1", "3", "", "", "nan", "nan"]


def test_latex_is_escaped(trial):
    here = trial(seeds=[0])
    text = latex(collect(here, read_cases(here)))
    assert r"Ours \& co & 1.000 & 1.000 & 1.000 \\" in text
    assert r"2d\_small, 50 \% labeled" in text
    assert text.count(r"\begin{tabular}{lccc}") == text.count(r"\end{tabular}") == 4


def test_nothing_finished(place, fakes):
    here = place()
    with pytest.raises(UserError, match="was not run yet"):
        read_cases(here)
    run_experiment(here, only_prepare=True)
    with pytest.raises(UserError, match=r"No run of .* is finished yet"):
        collect(here, read_cases(here))


def test_results_of_other_values_are_not_reported(trial):
    here = trial(seeds=[0])
    run = all_runs(here.experiment)[0]
    file = here.home(run) / "experiment_run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"trainer": "another"}))
    with pytest.raises(UserError, match=r"trained with other cases or values \(trainer\)"):
        collect(here, read_cases(here))


def test_a_run_is_of_other_values_where_the_trainers_defaults_have_changed(trial):
    """But not where only one version of the package has a key, or the record is older than the defaults in it."""
    here = trial(seeds=[0])
    run = next(run for run in all_runs(here.experiment) if run.row.trainer == "nnUNetTrainerSupervised")
    file = here.home(run) / "experiment_run.json"
    record = json.loads(file.read_text())
    assert record["ssl"]["mirroring"] is True
    for of_before in ({"a_former_key": 1}, None):
        known = {"ssl": {"mirroring": True} | of_before} if of_before else {}
        file.write_text(json.dumps({part: value for part, value in record.items() if part != "ssl"} | known))
        collect(here, read_cases(here))
    file.write_text(json.dumps(record | {"ssl": record["ssl"] | {"mirroring": False}}))
    with pytest.raises(UserError, match=r"trained with other cases or values \(ssl\.mirroring\)"):
        collect(here, read_cases(here))
