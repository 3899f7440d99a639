"""The values of an experiment, from its finished runs: the tables that the report and its picture are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pandas import CategoricalDtype, DataFrame, MultiIndex, Series

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.experiment.experiment_file import Experiment
from nnunet_dvcl.tools.experiment.metrics import METRICS, CaseMetrics, measure_folders
from nnunet_dvcl.tools.experiment.prepare import Cases, check_record
from nnunet_dvcl.tools.experiment.runs import Run, State, Workplace, all_runs
from nnunet_dvcl.tools.experiment.statistics import PairedTest, compare, holm
from nnunet_dvcl.tools.split.draw import group_by

GROUP = ["labeled", "configuration"]
"""The columns that the rows have in common that are compared with each other."""
ROW = [*GROUP, "row", "title", "trainer"]
Values = TypeVar("Values", DataFrame, Series)
MEAN = "mean"
"""Stands in the place of an organ for the mean over the organs."""


@dataclass(frozen=True)
class Results:
    """The finished part of an experiment, in the order of its file.

    Attributes:
        cases: indexed by `ROW`, seed, case and organ: the value of each metric (nan: none), and 1 or 0 for ``present``
            (the truth has the organ), ``missed`` (it alone has it) and ``false_alarm`` (the prediction alone has it).
            A case that several folds predict has their mean.
        table: indexed by `ROW`, metric and organ or `MEAN`: ``mean`` and ``std`` over the ``seeds``, with their number
            and that of the ``cases``; of an organ the number of cases that are ``present``, ``missed`` or
            ``false_alarm``, mean over the seeds. Of `MEAN` the `PairedTest` of the row against the baseline, and
            ``p_holm``, its p corrected for all tests of the metric. nan elsewhere.
        unfinished: runs that are not in the tables.
    """

    cases: DataFrame
    table: DataFrame
    unfinished: list[Run]


def collect(place: Workplace, cases: Cases) -> Results:
    """Measures all finished runs.

    Raises:
        UserError: no run is finished, or one was made with other cases or values than the experiment has now.
    """
    experiment = place.experiment
    runs = all_runs(experiment)
    finished = [run for run in runs if place.state(run) is State.FINISHED]
    if not finished:
        raise UserError(f"No run of {experiment.file} is finished yet: nnunet_dvcl experiment run does them.")
    for run in finished:
        check_record(place, run, cases)
    unfinished = [run for run in runs if run not in finished]
    incomplete = {_without_fold(run) for run in unfinished}
    complete = [run for run in finished if _without_fold(run) not in incomplete]
    if not complete:
        raise UserError(f"No seed of {experiment.file} has all its folds yet: nnunet_dvcl experiment run does them.")
    folders = {run: place.predictions(run) for run in complete}
    evaluated = {folders[run]: cases.evaluated(run) for run in complete}
    measured = measure_folders(place.truth, evaluated, place.dataset.json, experiment.report.tolerance)
    table = case_table(experiment, {run: measured[folder] for run, folder in folders.items()})
    tests = compare_rows(table, experiment.report.baseline, experiment.patient_pattern)
    return Results(table, summarize(table).join(tests), unfinished)


def _without_fold(run: Run) -> tuple:
    """A seed counts where it has every fold: with one missing, its cases would be missing in its mean."""
    return run.row, run.configuration, run.amount, run.seed


def case_table(experiment: Experiment, measured: Mapping[Run, Mapping[str, CaseMetrics]]) -> DataFrame:
    """`Results.cases`."""
    table = DataFrame(
        {
            "labeled": run.amount.title,
            "configuration": run.configuration.name,
            "row": run.row.name,
            "title": run.row.title,
            "trainer": run.row.trainer,
            "seed": run.seed,
            "case": case,
            "organ": organ,
            **values,
        }
        for run, cases in measured.items()
        for case, organs in cases.items()
        for organ, values in organs.items()
    )
    present, predicted = table.pop("voxels") > 0, table.pop("predicted") > 0
    table = table.assign(present=present, missed=present & ~predicted, false_alarm=predicted & ~present)
    order = {
        "labeled": [amount.title for amount in experiment.splits.labeled],
        "configuration": [configuration.name for configuration in experiment.configurations],
        "row": [row.name for row in experiment.rows],
        "organ": [*table["organ"].unique(), MEAN],
    }
    table = table.astype({column: CategoricalDtype(dict.fromkeys(names)) for column, names in order.items()})
    return table.groupby([*ROW, "seed", "case", "organ"], observed=True).mean()


def _of_metrics(cases: DataFrame) -> DataFrame:
    """The metrics of the cases below each other."""
    values = cases.melt(value_vars=METRICS, var_name="metric", ignore_index=False)
    return values.astype({"metric": CategoricalDtype(METRICS)})


def summarize(cases: DataFrame) -> DataFrame:
    """`Results.table` of `Results.cases`: means over the cases, then over the seeds."""
    seeds = _of_metrics(cases).groupby([*ROW, "metric", "seed", "organ"], observed=True)["value"].mean().unstack()
    seeds[MEAN] = seeds.mean(axis=1, skipna=False)  # as in nnU-Net's summary.json, none where an organ has none
    seeds = seeds.melt(ignore_index=False).groupby([*ROW, "metric", "organ"], observed=True)["value"]
    table = seeds.agg(
        mean=lambda values: values.mean(skipna=False), std=lambda values: values.std(skipna=False), seeds="size"
    )
    cases = cases.reset_index("case")
    counts = cases.groupby([*ROW, "seed", "organ"], observed=True)[["present", "missed", "false_alarm"]].sum()
    counts = counts.groupby([*ROW, "organ"], observed=True).mean()
    return table.join(cases.groupby(ROW, observed=True)["case"].nunique().rename("cases")).join(counts)


def of_patients(values: Values, pattern: str | None) -> Values:
    """Means over the cases of each patient, who then stands in the index level ``case``; as it is without a pattern.

    Two scans of one patient are alike in what a training finds hard: a test that took each for a witness of its own
    would call chance an effect.

    Raises:
        UserError: `pattern` is no regular expression, or finds nothing in a case.
    """
    if pattern is None:
        return values
    patients = group_by(values.index.unique("case"), pattern)
    return values.rename(index=patients, level="case").groupby(values.index.names, observed=True).mean()


def compare_rows(cases: DataFrame, baseline: str | None, pattern: str | None = None) -> DataFrame:
    """The tests of `Results.table`: the value of a case is the mean over the seeds, then over the organs that have one.

    With the `pattern` of `of_patients` the pairs are patients.

    Returns:
        Indexed by `GROUP`, row, metric and `MEAN`, for every row but the baseline where that has one to compare with.
    """
    found = {}
    keys = [*GROUP, "metric", "row", "case"]
    means = _of_metrics(cases).groupby([*keys, "organ"], observed=True)["value"].mean()
    means = of_patients(means.groupby(keys, observed=True).mean(), pattern)
    for (labeled, configuration, metric), own in means.groupby([*GROUP, "metric"], observed=True):
        rows = own.unstack("row")
        for row in rows.columns.drop(baseline) if baseline in rows else ():
            found[labeled, configuration, row, metric, MEAN] = compare(rows[row], rows[baseline])
    index = MultiIndex.from_tuples(found, names=[*GROUP, "row", "metric", "organ"])
    tests = DataFrame(found.values(), index, PairedTest._fields)
    return tests.assign(p_holm=tests.groupby("metric")["p"].transform(holm))
