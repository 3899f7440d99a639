"""``nnunet_dvcl experiment report``: tables as Markdown, CSV and LaTeX, and box plots."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunet_dvcl import __version__
from nnunet_dvcl.figures import COLORS, plain_style, save_image, save_table
from nnunet_dvcl.tools.experiment.experiment_file import IMAGES_TS
from nnunet_dvcl.tools.experiment.metrics import LOWER_IS_BETTER, METRICS
from nnunet_dvcl.tools.experiment.prepare import Cases, is_ours, read_cases
from nnunet_dvcl.tools.experiment.results import Group, Results, RowResult, collect
from nnunet_dvcl.tools.experiment.runs import Workplace
from nnunet_dvcl.tools.running.progress import CHECKPOINT

_DIGITS = {"HD95": 2}  # of mm; the others are shares, with 3


def write_report(place: Workplace, folder: Path) -> Path:
    """Measures the finished runs and writes ``report.md``, ``tables.tex``, ``table.csv``, ``cases.csv``, ``dice.png``.

    Returns:
        The path of ``report.md``.

    Raises:
        UserError: no run is finished, or one was made with other cases or values than the experiment has now.
    """
    cases = read_cases(place)
    results = collect(place, cases)
    folder.mkdir(parents=True, exist_ok=True)
    save_table(folder / "table.csv", *csv_table(results))
    save_table(folder / "cases.csv", *csv_cases(results))
    _write(folder / "tables.tex", latex(results))
    with plain_style():
        figure = draw(results)
        for kind in ("png", "svg"):
            save_image(figure, folder / f"dice.{kind}", dpi=150)
    _write(folder / "report.md", markdown(place, cases, results))
    return folder / "report.md"


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


# ---------------------------------------------------------------- numbers as text


def _number(value: float, metric: str) -> str:
    return "n/a" if math.isnan(value) else f"{value:.{_DIGITS.get(metric, 3)}f}"


def _spread(mean: float, spread: float, metric: str, sign: str = "±") -> str:
    text = _number(mean, metric)
    return text if math.isnan(spread) else f"{text} {sign} {_number(spread, metric)}"


def _count(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _p(value: float) -> str:
    return "n/a" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


# ---------------------------------------------------------------- Markdown


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def markdown(place: Workplace, cases: Cases, results: Results) -> str:
    """The whole report."""
    parts = [f"# {place.experiment.name}\n", _what_was_compared(place, cases, results)]
    for group, rows in results.groups.items():
        parts.append(f"## {group.configuration}, {group.amount} labeled\n")
        parts += [_metric_table(metric, rows, results) for metric in METRICS]
        if place.experiment.report.baseline is not None:
            parts.append(_test_table(place, group, rows, results))
        parts.append(_count_table(rows, results))
    parts.append("![Dice of each organ](dice.png)\n")
    return "\n".join(filter(None, parts))


def _what_was_compared(place: Workplace, cases: Cases, results: Results) -> str:
    experiment = place.experiment
    options = experiment.splits
    absent = (
        "Absent organs are treated as nnU-Net treats them: a case in which neither truth nor prediction has the organ "
        "has no value; where only one of the two has it, Dice, Jaccard and NSD are 0. HD95 has no value in both, so a "
        "missed organ does not raise it: read it beside the number of cases missed."
    )
    distances = (
        "HD95 in mm; NSD: normalized surface distance (surface Dice) at a tolerance of "
        f"{experiment.report.tolerance:g} mm. Both by the package surface-distance."
    )
    whatever = "which the test cases are not among" if options.test == IMAGES_TS else "test and validation cases too"
    lines = [
        f"{place.dataset}, plans {experiment.plans}; nnunet_dvcl {__version__}.",
        f"Cases: {_evaluated(place, cases)}",
        f"Checkpoint: {CHECKPOINT}, of the last epoch, in all runs: no checkpoint was selected on any case.",
        f"Values are means over the cases, then mean ± standard deviation over the seeds ({_seeds(results)}).",
        absent,
        "The mean is that of the organs' means, as nnU-Net's foreground mean; it is n/a when an organ has no value.",
        distances,
        f"nnU-Net's plans and intensity statistics were made from all cases of imagesTr, {whatever}.",
    ]
    if experiment.report.baseline is not None:
        number = len([key for key in results.tests if key[2] == METRICS[0]])
        lines.append(
            f"p: two-sided Wilcoxon signed-rank test against {_title(place, experiment.report.baseline)}, paired over "
            "the cases; the value of a case is the mean over its organs and the seeds. Corrected by Holm's procedure "
            f"for the number of comparisons of each metric in this report, {number}. It says nothing of the spread "
            "over other draws of the labeled cases."
        )
    stock = sorted({row.trainer for rows in results.groups.values() for row in rows if not is_ours(row.trainer)})
    if stock:
        lines.append(f"{', '.join(stock)} cannot be seeded: its seeds only number independent runs.")
    if results.unfinished:
        names = ", ".join(run.name for run in results.unfinished)
        lines.append(f"**Not finished and not in the tables, {len(results.unfinished)} runs**: {names}.")
    return "".join(f"- {line}\n" for line in lines)


def _evaluated(place: Workplace, cases: Cases) -> str:
    options = place.experiment.splits
    if place.has_test:
        where = IMAGES_TS if options.test == IMAGES_TS else f"{options.test:.0%} of the labeled cases, held out"
        return f"{len(cases.test)} test cases ({where}), in no fold: neither trained nor validated on."
    return (
        "the validation cases of each fold; there are no test cases. Nothing was selected on them in these runs, but "
        "values that were tuned on them make these numbers too good."
    )


def _seeds(results: Results) -> str:
    seeds = sorted({row.seeds for rows in results.groups.values() for row in rows})
    texts = [", ".join(map(str, own)) for own in seeds]
    return f"seeds {texts[0]}" if len(texts) == 1 else "not the same for all rows: see the tables"


def _title(place: Workplace, name: str) -> str:
    return next(row.title for row in place.experiment.rows if row.name == name)


def _metric_table(metric: str, rows: list[RowResult], results: Results) -> str:
    better = "lower is better" if metric in LOWER_IS_BETTER else "higher is better"
    unit = "mm, " if metric in LOWER_IS_BETTER else ""
    header = [f"{metric} ({unit}{better})", *results.organs, "mean", "seeds", "cases"]
    return _table(
        header,
        [
            [
                row.title,
                *(_spread(*pair, metric) for pair in row.spread(metric)),
                str(len(row.seeds)),
                str(len(row.cases)),
            ]
            for row in rows
        ],
    )


def _test_table(place: Workplace, group: Group, rows: list[RowResult], results: Results) -> str:
    baseline = place.experiment.report.baseline
    if all(row.name != baseline for row in rows):
        return f"No test: {_title(place, baseline)} has no finished run here.\n"
    header = [f"against {_title(place, baseline)}"]
    header += [text for metric in METRICS for text in (f"{metric} difference", "p (cases)")]
    lines = []
    for row in rows:
        if row.name == baseline:
            continue
        found = [(results.tests[group, row.name, metric], metric) for metric in METRICS]
        lines.append(
            [
                row.title,
                *(t for (test, p), m in found for t in (_signed(test.difference, m), f"{_p(p)} ({test.num_cases})")),
            ]
        )
    return _table(header, lines) if lines else ""


def _signed(value: float, metric: str) -> str:
    return "n/a" if math.isnan(value) else f"{value:+.{_DIGITS.get(metric, 3)}f}"


def _count_table(rows: list[RowResult], results: Results) -> str:
    present = [_count(value) for value in rows[0].num_present]
    lines = [["cases that have it", *present]]
    for row in rows:
        lines.append([f"{row.title}: missed", *map(_count, row.num_missed)])
        lines.append([f"{row.title}: found where it is not", *map(_count, row.num_false_alarms)])
    return _table(["number of cases, mean over seeds", *results.organs], lines)


# ---------------------------------------------------------------- CSV


def csv_table(results: Results) -> tuple[list[str], Iterator[list]]:
    """One row a value of the tables."""
    header = ["configuration", "labeled", "row", "trainer", "metric", "organ", "mean", "std", "seeds", "cases"]
    header += ["missed", "false_alarms", "difference", "p_holm"]

    def lines() -> Iterator[list]:
        for group, rows in results.groups.items():
            for row in rows:
                for metric in METRICS:
                    yield from _csv_lines(group, row, metric, results)

    return header, lines()


def _csv_lines(group: Group, row: RowResult, metric: str, results: Results) -> Iterator[list]:
    counts = [*zip(row.num_missed, row.num_false_alarms, strict=True), ("", "")]
    for organ, (mean, std), count in zip((*results.organs, "mean"), row.spread(metric), counts, strict=True):
        test, p = results.tests.get((group, row.name, metric), (None, "")) if organ == "mean" else (None, "")
        difference = "" if test is None else test.difference
        size = [len(row.seeds), len(row.cases)]
        yield [*group, row.name, row.trainer, metric, organ, mean, std, *size, *count, difference, p]


def csv_cases(results: Results) -> tuple[list[str], Iterator[list]]:
    """One row for each seed, case and organ."""
    header = ["configuration", "labeled", "row", "trainer", "seed", "case", "organ", *METRICS, "missed", "false_alarm"]

    def lines() -> Iterator[list]:
        for group, rows in results.groups.items():
            for row in rows:
                for s, seed in enumerate(row.seeds):
                    for c, case in enumerate(row.cases):
                        for o, organ in enumerate(results.organs):
                            index = (s, c, o)
                            values = [*row.values[index], row.missed[index], row.false_alarm[index]]
                            yield [*group, row.name, row.trainer, seed, case, organ, *values]

    return header, lines()


# ---------------------------------------------------------------- LaTeX

_ESCAPES = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"})


def latex(results: Results) -> str:
    """A table a metric and group, for the package booktabs."""
    parts = ["% needs \\usepackage{booktabs}\n"]
    for group, rows in results.groups.items():
        for metric in METRICS:
            parts.append(_latex_table(group, metric, rows, results))
    return "\n".join(parts)


def _latex_table(group: Group, metric: str, rows: list[RowResult], results: Results) -> str:
    has_tests = any((group, row.name, metric) in results.tests for row in rows)
    header = ["", *results.organs, "mean", *(["$p$"] if has_tests else [])]
    lines = []
    for row in rows:
        cells = [_spread(*pair, metric, r"$\pm$") for pair in row.spread(metric)]
        test = results.tests.get((group, row.name, metric))
        p = [_p(test[1]).replace("<", "$<$") if test else ""] if has_tests else []
        lines.append(" & ".join([row.title.translate(_ESCAPES), *cells, *p]))
    caption = f"{metric}, {group.configuration}, {group.amount} labeled".translate(_ESCAPES)
    body = " & ".join(text if "$" in text else text.translate(_ESCAPES) for text in header)
    return (
        f"% {caption}\n\\begin{{tabular}}{{l{'c' * (len(header) - 1)}}}\n\\toprule\n{body} \\\\\n\\midrule\n"
        + "".join(f"{line} \\\\\n" for line in lines)
        + "\\bottomrule\n\\end{tabular}\n"
    )


# ---------------------------------------------------------------- picture


def draw(results: Results) -> Figure:
    """Box plots of the Dice of the cases, mean over the seeds: a panel a group, in it for each organ a box a row."""
    width = max(6.0, 1.5 + 0.28 * len(results.organs) * max(len(rows) for rows in results.groups.values()))
    figure = Figure(figsize=(min(width, 20.0), 3.2 * len(results.groups)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(results.groups), 1, squeeze=False)[:, 0]
    for axes, (group, rows) in zip(panels, results.groups.items(), strict=True):
        for index, row in enumerate(rows):
            _draw_row(axes, row, index, len(rows))
        axes.set_xticks(range(len(results.organs)), results.organs, rotation=0 if len(results.organs) < 7 else 30)
        axes.set(title=f"{group.configuration}, {group.amount} labeled", ylabel="Dice", ylim=(-0.02, 1.02))
        handles = [Patch(color=COLORS[i % len(COLORS)], alpha=0.6, label=row.title) for i, row in enumerate(rows)]
        axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _draw_row(axes, row: RowResult, index: int, count: int) -> None:
    width = 0.8 / count
    values = row.of_cases("Dice")
    columns = [column[~np.isnan(column)] for column in values.T]
    positions = [organ - 0.4 + width * (index + 0.5) for organ in range(len(columns))]
    color = COLORS[index % len(COLORS)]
    axes.boxplot(
        columns,
        positions=positions,
        widths=0.85 * width,
        patch_artist=True,
        boxprops={"facecolor": color, "alpha": 0.6},
        medianprops={"color": "black"},
        flierprops={"markersize": 2.5, "markeredgecolor": color},
    )
