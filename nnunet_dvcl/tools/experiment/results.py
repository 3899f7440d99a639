"""The values of an experiment, from its finished runs: what the tables and the picture are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.experiment.metrics import METRICS, CaseMetrics, measure_folders
from nnunet_dvcl.tools.experiment.prepare import Cases, check_record, settings
from nnunet_dvcl.tools.experiment.runs import RECORD, Run, State, Workplace, all_runs
from nnunet_dvcl.tools.experiment.statistics import PairedTest, compare, holm, mean_and_spread, mean_of


class Group(NamedTuple):
    """The rows that are compared with each other."""

    configuration: str
    amount: str  # title


@dataclass(frozen=True)
class RowResult:
    """All that a row of a table has in one group.

    Attributes:
        values: [seeds, cases, organs, metrics]; a case that several folds predict has their mean. nan: no value.
        missed: [seeds, cases, organs], 1 where the truth has the organ and the prediction has none of it.
        false_alarm: the same, 1 where only the prediction has it.
        num_present: [organs], cases whose truth has the organ.
    """

    name: str
    title: str
    trainer: str
    seeds: tuple[int, ...]
    cases: tuple[str, ...]
    values: np.ndarray
    missed: np.ndarray
    false_alarm: np.ndarray
    num_present: np.ndarray

    def of_seeds(self, metric: str) -> np.ndarray:
        """[seeds, organs + 1]: the mean over the cases for each organ, and last the mean of these means.

        As in nnU-Net's ``summary.json``, a mean of organs of which one has no value has none.
        """
        organs = mean_of(self.values[..., METRICS.index(metric)], axis=1)
        return np.concatenate([organs, organs.mean(1, keepdims=True)], axis=1)

    def spread(self, metric: str) -> list[tuple[float, float]]:
        """Mean and standard deviation over the seeds, for each organ and the mean."""
        return [mean_and_spread(column) for column in self.of_seeds(metric).T]

    def of_cases(self, metric: str) -> np.ndarray:
        """[cases, organs]: the mean over the seeds."""
        return mean_of(self.values[..., METRICS.index(metric)], axis=0)

    def case_means(self, metric: str) -> np.ndarray:
        """[cases]: the mean over the organs that have a value, and over the seeds."""
        return mean_of(self.of_cases(metric), axis=1)

    @property
    def num_missed(self) -> np.ndarray:
        """[organs]: number of cases in which the organ was missed, mean over the seeds."""
        return self.missed.sum(1).mean(0)

    @property
    def num_false_alarms(self) -> np.ndarray:
        """[organs]: number of cases in which it was found and is not there, mean over the seeds."""
        return self.false_alarm.sum(1).mean(0)


@dataclass(frozen=True)
class Results:
    """The finished part of an experiment.

    Attributes:
        tests: (group, row, metric) -> test of the means of the cases against the baseline, and the corrected p.
        unfinished: runs that are not in the tables.
    """

    organs: tuple[str, ...]
    groups: dict[Group, list[RowResult]]
    tests: dict[tuple[Group, str, str], tuple[PairedTest, float]]
    unfinished: list[Run]


def collect(place: Workplace, cases: Cases) -> Results:
    """Measures all finished runs.

    Raises:
        UserError: no run is finished, or one was made with other cases or values than the experiment has now.
    """
    runs = all_runs(place.experiment)
    finished = [run for run in runs if place.state(run) is State.FINISHED]
    if not finished:
        raise UserError(f"No run of {place.experiment.file} is finished yet: nnunet_dvcl experiment run does them.")
    for run in finished:
        check_record(place.home(run) / RECORD, settings(place, run, cases))
    truth = place.test_labels if place.has_test else place.preprocessed / "gt_segmentations"
    measured = measure_folders(
        {place.predictions(run): truth for run in finished},
        {place.predictions(run): cases.evaluated(run) for run in finished},
        place.dataset_json,
        place.experiment.report.tolerance,
    )
    of_runs = {run: measured[place.predictions(run)] for run in finished}
    organs = tuple(next(iter(next(iter(of_runs.values())).values())))
    groups: dict[Group, list[RowResult]] = {}
    for (group, _), row_runs in _by_row(finished).items():
        complete = _complete_seeds(row_runs, row_runs[0].amount.folds or place.experiment.splits.use)
        if complete:
            groups.setdefault(group, []).append(_row_result(complete, of_runs, organs))
    tests = _tests(groups, place.experiment.report.baseline)
    return Results(organs, groups, tests, [run for run in runs if run not in of_runs])


def _by_row(runs: Sequence[Run]) -> dict[tuple[Group, str], list[Run]]:
    """In the order of the file: amounts, configurations, rows."""
    grouped: dict[tuple[Group, str], list[Run]] = {}
    for run in runs:
        grouped.setdefault((Group(run.configuration.name, run.amount.title), run.row.name), []).append(run)
    return grouped


def _complete_seeds(runs: list[Run], folds: Sequence[int]) -> dict[int, list[Run]]:
    """Seed -> its runs, for the seeds that have every fold: with one missing, its cases would be missing."""
    by_seed = {seed: [run for run in runs if run.seed == seed] for seed in sorted({run.seed for run in runs})}
    return {seed: own for seed, own in by_seed.items() if {run.fold for run in own} == set(folds)}


def _row_result(
    by_seed: dict[int, list[Run]], of_runs: dict[Run, dict[str, CaseMetrics]], organs: tuple[str, ...]
) -> RowResult:
    first = next(iter(by_seed.values()))
    cases = tuple(sorted({case for run in first for case in of_runs[run]}))

    def of_folds(runs: list[Run], case: str, organ: str, value: Callable[[dict], Sequence[float]]) -> np.ndarray:
        found = [value(of_runs[run][case][organ]) for run in runs if case in of_runs[run]]
        return mean_of(np.array(found, dtype=float), axis=0)

    def table(value: Callable[[dict], Sequence[float]]) -> np.ndarray:
        """[seeds, cases, organs, values]"""
        return np.array(
            [[[of_folds(runs, case, organ, value) for organ in organs] for case in cases] for runs in by_seed.values()]
        )

    counts = table(
        lambda m: [m["voxels"] > 0, m["voxels"] > 0 and not m["predicted"], m["predicted"] > 0 and not m["voxels"]]
    )
    row = first[0].row
    return RowResult(
        row.name,
        row.title,
        row.trainer,
        tuple(by_seed),
        cases,
        table(lambda metrics: [metrics[name] for name in METRICS]),
        missed=counts[..., 1],
        false_alarm=counts[..., 2],
        num_present=counts[0, ..., 0].sum(0),
    )


def _tests(groups: dict[Group, list[RowResult]], baseline: str | None) -> dict:
    """Every other row against the baseline of its group; Holm's correction over all tests of one metric."""
    tests = {}
    for metric in METRICS:
        found: dict[tuple[Group, str], PairedTest] = {}
        for group, rows in groups.items():
            base = next((row for row in rows if row.name == baseline), None)
            for row in rows:
                if base is None or row is base:
                    continue
                found[group, row.name] = _compare_rows(row, base, metric)
        corrected = holm([test.p for test in found.values()])
        for (key, test), p in zip(found.items(), corrected, strict=True):
            tests[(*key, metric)] = (test, p)
    return tests


def _compare_rows(row: RowResult, base: RowResult, metric: str) -> PairedTest:
    first, second = (dict(zip(r.cases, r.case_means(metric), strict=True)) for r in (row, base))
    common = sorted(first.keys() & second.keys())
    return compare([first[case] for case in common], [second[case] for case in common])
