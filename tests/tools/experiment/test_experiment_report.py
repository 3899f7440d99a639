"""The tables of finished runs whose predictions are known."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from nnunet_dvcl.cli import main
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.experiment import runner
from nnunet_dvcl.tools.experiment.prepare import read_cases
from nnunet_dvcl.tools.experiment.report import latex, markdown
from nnunet_dvcl.tools.experiment.results import collect
from nnunet_dvcl.tools.experiment.runner import run_experiment
from nnunet_dvcl.tools.experiment.runs import all_runs
from nnunet_dvcl.tools.experiment.statistics import compare
from tests.conftest import read_image, write_image

GOLDEN = Path(__file__).parent / "golden_report.md"
TEST = {"labeled": ["50%"], "folds": 2, "test": 0.5}
ROWS = ["nnUNetTrainer", {"trainer": "nnUNetTrainerSupervised", "title": "Ours & co"}]


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
    """Puts other predictions in the place of a run's; `change` gets the labels and the number of the case."""
    (run,) = [run for run in all_runs(here.experiment) if run.row.name == row and run.seed == seed]
    for index, file in enumerate(sorted(here.predictions(run).glob("*.nii.gz"))):
        write_image(file, change(read_image(file), index).astype(np.uint8))


def shifted(labels: np.ndarray, index: int) -> np.ndarray:
    return np.roll(labels, 1 + index, axis=2)


def without_small(labels: np.ndarray, index: int) -> np.ndarray:
    """Label 2 is missed in the first case."""
    return np.where(labels == 2, 0, labels) if index == 0 else labels


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


def test_the_values_are_means_of_cases_then_of_seeds(trial):
    here = trial(report={"baseline": "nnUNetTrainer"})
    spoil(here, "nnUNetTrainerSupervised", 0, shifted)
    spoil(here, "nnUNetTrainerSupervised", 1, without_small)
    results = collect(here, read_cases(here))
    ((base, row),) = results.groups.values()
    naive = []  # [seed][organ]
    test = read_cases(here).test
    for seed in (0, 1):
        (run,) = [r for r in all_runs(here.experiment) if r.row.name == "nnUNetTrainerSupervised" and r.seed == seed]
        of_cases = []
        for case in test:
            truth = read_image(here.test_labels / f"{case}.nii.gz")
            prediction = read_image(here.predictions(run) / f"{case}.nii.gz")
            overlap = [
                (2 * ((truth == k) & (prediction == k)).sum(), (truth == k).sum() + (prediction == k).sum())
                for k in (1, 2)
            ]
            of_cases.append([a / b for a, b in overlap])
        naive.append(np.mean(of_cases, axis=0))
    naive = np.array(naive)
    pairs = row.spread("Dice")
    for organ in (0, 1):
        assert pairs[organ] == pytest.approx((naive[:, organ].mean(), naive[:, organ].std(ddof=1)))
    assert pairs[2] == pytest.approx((naive.mean(), naive.mean(1).std(ddof=1)))
    assert list(row.num_missed) == [0, 0.5]
    assert list(row.num_present) == [3, 3]
    assert all(mean == 1 for mean, _ in base.spread("Dice"))


def test_the_missed_organ_has_no_distance_and_no_overlap(trial):
    here = trial()
    spoil(here, "nnUNetTrainerSupervised", 1, without_small)
    ((_, row),) = collect(here, read_cases(here)).groups.values()
    assert math.isnan(row.values[1, 0, 1, 2])
    assert row.values[1, 0, 1, 3] == 0
    assert row.spread("HD95")[1] == (0, 0)


def test_found_where_it_is_not(trial):
    here = trial(seeds=[0])
    case = read_cases(here).test[0]
    for file in (here.test_labels / f"{case}.nii.gz",):
        write_image(file, np.where(read_image(file) == 2, 1, read_image(file)).astype(np.uint8))
    ((_, row),) = collect(here, read_cases(here)).groups.values()
    assert list(row.num_false_alarms) == [0, 1]
    assert list(row.num_present) == [3, 2]
    assert row.values[0, 0, 1, 0] == 0


def test_the_test_is_paired_over_cases_with_means_over_seeds_and_organs(trial):
    here = trial(report={"baseline": "nnUNetTrainer"})
    spoil(here, "nnUNetTrainerSupervised", 0, shifted)
    results = collect(here, read_cases(here))
    ((group, (base, row)),) = results.groups.items()
    test, corrected = results.tests[group, "nnUNetTrainerSupervised", "Dice"]
    expected = compare(np.mean(row.values[..., 0], (0, 2)), np.mean(base.values[..., 0], (0, 2)))
    assert test == expected
    assert corrected == expected.p  # one comparison
    assert test.difference < 0
    assert test.num_cases == 3


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
    dice = {key: value for key, value in results.tests.items() if key[2] == "Dice"}
    assert len(dice) == 4
    assert all(p == pytest.approx(min(1, 4 * test.p)) for test, p in dice.values())


def test_unfinished_runs_are_named_and_other_seeds_still_count(trial):
    here = trial(report={"baseline": "nnUNetTrainer"})
    run = all_runs(here.experiment)[-1]
    (here.predictions(run) / "experiment_run.json").unlink()
    results = collect(here, read_cases(here))
    assert results.unfinished == [run]
    ((base, row),) = results.groups.values()
    assert (base.seeds, row.seeds) == ((0, 1), (0,))
    assert run.name in markdown(here, read_cases(here), results)


def test_without_test_cases_the_folds_together_are_the_cases(trial, tiny_dataset):
    """Each case validates in one fold. The report says what it means that there are no test cases."""
    here = trial(splits={"labeled": ["50%"], "folds": 2, "use": [0, 1]}, seeds=[0])
    cases = read_cases(here)
    for run in all_runs(here.experiment):
        for case in cases.splits[run.split]["val"]:
            truth = tiny_dataset.raw / "labelsTr" / f"{case}.nii.gz"
            write_image(here.predictions(run) / f"{case}.nii.gz", read_image(truth))
    results = collect(here, cases)
    ((row, _),) = results.groups.values()
    assert row.cases == tiny_dataset.labeled
    assert row.spread("Dice")[2][0] == 1
    assert "validation cases of each fold; there are no test cases" in markdown(here, cases, results)


def test_a_seed_that_lacks_a_fold_does_not_count(trial):
    """Its cases would be missing in its mean."""
    here = trial(splits={**TEST, "use": [0, 1]})
    run = all_runs(here.experiment)[-1]
    assert (run.fold, run.seed) == (1, 1)
    (here.predictions(run) / "experiment_run.json").unlink()
    ((base, row),) = collect(here, read_cases(here)).groups.values()
    assert (base.seeds, row.seeds) == ((0, 1), (0,))


def test_the_csv_of_the_cases_is_complete(trial, tmp_path):
    here = trial(seeds=[0])
    main(["experiment", "report", str(here.experiment.file), "-o", str(tmp_path)])
    with open(tmp_path / "cases.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 2
    assert {row["Dice"] for row in rows} == {"1.0"}


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
