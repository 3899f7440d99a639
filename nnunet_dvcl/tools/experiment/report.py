"""``nnunet_dvcl experiment report``: tables as Markdown, CSV and LaTeX, and box plots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame, Series

from nnunet_dvcl import __version__, trainers
from nnunet_dvcl.figures import COLORS, plain_style, save_image, save_table
from nnunet_dvcl.files import replacing
from nnunet_dvcl.tools.experiment.metrics import LOWER_IS_BETTER, METRICS
from nnunet_dvcl.tools.experiment.prepare import Cases, read_cases
from nnunet_dvcl.tools.experiment.results import GROUP, MEAN, ROW, Results, collect
from nnunet_dvcl.tools.experiment.runs import Run, Workplace
from nnunet_dvcl.tools.running.progress import CHECKPOINT

_DIGITS = {"HD95": 2}  # of mm; the others are shares, with 3
_ROW = ["row", "title"]


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
    save_table(folder / "table.csv", csv_table(results))
    save_table(folder / "cases.csv", csv_cases(results))
    with plain_style():
        figure = draw(results, place.experiment.report.baseline)
        for kind in ("png", "svg"):
            save_image(figure, folder / f"dice.{kind}", dpi=150)
    for name, text in (("tables.tex", latex(results)), ("report.md", markdown(place, cases, results))):
        with replacing(str(folder / name)) as partial:
            Path(partial).write_text(text, encoding="utf-8")
    return folder / "report.md"


# ---------------------------------------------------------------- numbers as text


def _number(value: float, metric: str, sign: str = "") -> str:
    return "n/a" if math.isnan(value) else f"{value:{sign}.{_DIGITS.get(metric, 3)}f}"


def _spread(mean: float, std: float, metric: str) -> str:
    text = _number(mean, metric)
    return text if math.isnan(std) else f"{text} ± {_number(std, metric)}"


def _count(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _p(value: float) -> str:
    return "n/a" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _rows(table: DataFrame, metric: str) -> Iterator[tuple[str, DataFrame, list[str]]]:
    """Of each row of a group its title, its lines of the metric, and the text of each: mean ± std."""
    for (_, title), lines in table.xs(metric, level="metric").groupby(_ROW, observed=True):
        yield title, lines, [_spread(*pair, metric) for pair in lines[["mean", "std"]].to_numpy()]


# ---------------------------------------------------------------- Markdown


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def markdown(place: Workplace, cases: Cases, results: Results) -> str:
    """The whole report."""
    parts = [f"# {place.experiment.name}\n", _what_was_compared(place, cases, results)]
    for (labeled, configuration), table in results.table.groupby(GROUP, observed=True):
        parts.append(f"## {configuration}, {labeled} labeled\n")
        parts += [_metric_table(metric, table) for metric in METRICS]
        if place.experiment.report.baseline is not None:
            parts.append(_test_table(place, table))
        parts.append(_count_table(table))
    parts.append("![Dice of each organ](dice.png)\n")
    return "\n".join(filter(None, parts))


def _what_was_compared(place: Workplace, cases: Cases, results: Results) -> str:
    experiment, baseline = place.experiment, place.experiment.report.baseline
    whatever = "which the test cases are not among" if place.has_own_test else "test and validation cases too"
    lines = [
        f"{place.dataset}, plans {experiment.plans}; nnunet_dvcl {__version__}.",
        f"Cases: {_evaluated(place, cases)}",
        f"Checkpoint: {CHECKPOINT}, of the last epoch, in all runs: no checkpoint was selected on any case.",
        f"Values are means over the cases, then mean ± standard deviation over the seeds ({_seeds(results)}).",
        (
            "Absent organs are treated as nnU-Net treats them: a case in which neither truth nor prediction has the "
            "organ has no value; where only one of the two has it, Dice, Jaccard and NSD are 0. HD95 has no value in "
            "both, so a missed organ does not raise it: read it beside the number of cases missed."
        ),
        "The mean is that of the organs' means, as nnU-Net's foreground mean; it is n/a when an organ has no value.",
        (
            "HD95 in mm; NSD: normalized surface distance (surface Dice) at a tolerance of "
            f"{experiment.report.tolerance:g} mm. Both by the package surface-distance."
        ),
        f"nnU-Net's plans and intensity statistics were made from all cases of imagesTr, {whatever}.",
    ]
    if baseline is not None:
        number = results.table["num_pairs"].xs(METRICS[0], level="metric").count()
        of_patient = ", that of a patient the mean over the cases" if experiment.patient_pattern else ""
        lines.append(
            f"p: two-sided Wilcoxon signed-rank test against {_title(place, baseline)}, paired over the "
            f"{_pairs(place)}; the value of a case is the mean over its organs and the seeds{of_patient}. Corrected by "
            f"Holm's procedure for the number of comparisons of each metric in this report, {number}. It says nothing "
            "of the spread over other draws of the labeled cases."
        )
    if stock := sorted(name for name in results.table.index.unique("trainer") if not hasattr(trainers, name)):
        lines.append(f"{', '.join(stock)} cannot be seeded: its seeds only number independent runs.")
    if results.unfinished:
        number, names = len(results.unfinished), _unfinished(results.unfinished)
        lines.append(f"**Not finished and not in the tables, {number} of the runs**: {names}.")
    return "".join(f"- {line}\n" for line in lines)


def _unfinished(runs: Iterable[Run]) -> str:
    """The seeds of one training together: of a large experiment many may be missing."""
    seeds: dict[str, list[str]] = {}
    for run in runs:
        seeds.setdefault(run.name.removesuffix(f"__seed{run.seed}"), []).append(str(run.seed))
    return ", ".join(f"{name} (seed{'s' * (len(of) > 1)} {', '.join(of)})" for name, of in seeds.items())


def _evaluated(place: Workplace, cases: Cases) -> str:
    if place.has_test:
        test = place.experiment.splits.test
        where = test if place.has_own_test else f"{test:.0%} of the labeled cases, held out"
        return f"{len(cases.test)} test cases ({where}), in no fold: neither trained nor validated on."
    return (
        "the validation cases of each fold; there are no test cases. Nothing was selected on them in these runs, but "
        "values that were tuned on them make these numbers too good."
    )


def _seeds(results: Results) -> str:
    of_rows = results.cases.index.to_frame(index=False).groupby(ROW, observed=True)["seed"].unique()
    texts = {", ".join(map(str, seeds)) for seeds in of_rows}
    return f"seeds {texts.pop()}" if len(texts) == 1 else "not the same for all rows: see the tables"


def _pairs(place: Workplace) -> str:
    return "patients" if place.experiment.patient_pattern else "cases"


def _title(place: Workplace, name: str) -> str:
    return next(row.title for row in place.experiment.rows if row.name == name)


def _metric_table(metric: str, table: DataFrame) -> str:
    better = "mm, lower is better" if metric in LOWER_IS_BETTER else "higher is better"
    sizes = ["seeds", "cases"]
    return _table(
        [f"{metric} ({better})", *table.index.unique("organ"), *sizes],
        [[title, *texts, *map(str, lines[sizes].iloc[0])] for title, lines, texts in _rows(table, metric)],
    )


def _test_table(place: Workplace, table: DataFrame) -> str:
    baseline = place.experiment.report.baseline
    if baseline not in table.index.unique("row"):
        return f"No test: {_title(place, baseline)} has no finished run here.\n"
    header = [f"against {_title(place, baseline)}"]
    header += [text for metric in METRICS for text in (f"{metric} difference", f"p ({_pairs(place)})")]
    rows = []
    tested = table.dropna(subset="num_pairs")[["difference", "p_holm", "num_pairs"]]
    for (_, title), tests in tested.groupby(_ROW, observed=True):
        rows.append([title])
        for metric, (difference, p, number) in zip(METRICS, tests.to_numpy(), strict=True):
            rows[-1] += [_number(difference, metric, "+"), f"{_p(p)} ({number:.0f})"]
    return _table(header, rows) if rows else ""


def _count_table(table: DataFrame) -> str:
    organs = table.drop(MEAN, level="organ")
    rows = [(title, lines) for title, lines, _ in _rows(organs, METRICS[0])]
    texts = [["cases that have it", *map(_count, rows[0][1]["present"])]]
    for title, lines in rows:
        texts.append([f"{title}: missed", *map(_count, lines["missed"])])
        texts.append([f"{title}: found where it is not", *map(_count, lines["false_alarm"])])
    return _table(["number of cases, mean over seeds", *organs.index.unique("organ")], texts)


# ---------------------------------------------------------------- CSV


def csv_table(results: Results) -> DataFrame:
    """One row a value of the tables."""
    table = results.table.reset_index().rename(columns={"false_alarm": "false_alarms"}).astype(object)
    counts, test = ["missed", "false_alarms"], ["difference", "p_holm"]
    # empty, where nan would be a number that could not be computed
    table.loc[table["organ"] == MEAN, counts] = ""
    table.loc[table["num_pairs"].isna(), test] = ""
    names = ["configuration", "labeled", "row", "trainer", "metric", "organ"]
    return table[[*names, "mean", "std", "seeds", "cases", *counts, *test]]


def csv_cases(results: Results) -> DataFrame:
    """One row for each seed, case and organ."""
    names = ["configuration", "labeled", "row", "trainer", "seed", "case", "organ"]
    return results.cases.reset_index()[[*names, *METRICS, "missed", "false_alarm"]]


# ---------------------------------------------------------------- LaTeX

_ESCAPES = {c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX = str.maketrans(_ESCAPES | {"±": r"$\pm$", "<": "$<$"})


def latex(results: Results) -> str:
    """A table a metric and group, for the package booktabs."""
    parts = ["% needs \\usepackage{booktabs}\n"]
    for (labeled, configuration), table in results.table.groupby(GROUP, observed=True):
        parts += [_latex_table(f"{metric}, {configuration}, {labeled} labeled", metric, table) for metric in METRICS]
    return "\n".join(parts)


def _latex_table(caption: str, metric: str, table: DataFrame) -> str:
    lines = [["", *table.index.unique("organ")]]
    lines += [[title, *texts] for title, _, texts in _rows(table, metric)]
    lines = [[text.translate(_LATEX) for text in line] for line in lines]
    tests = table.xs((metric, MEAN), level=("metric", "organ"))
    if tests["num_pairs"].notna().any():
        lines[0].append("$p$")
        for line, number, p in zip(lines[1:], tests["num_pairs"], tests["p_holm"], strict=True):
            line.append("" if math.isnan(number) else _p(p).translate(_LATEX))
    header, *rows = (" & ".join(line) + " \\\\\n" for line in lines)
    return (
        f"% {caption.translate(_LATEX)}\n\\begin{{tabular}}{{l{'c' * (len(lines[0]) - 1)}}}\n\\toprule\n{header}"
        f"\\midrule\n{''.join(rows)}\\bottomrule\n\\end{{tabular}}\n"
    )


# ---------------------------------------------------------------- picture


def draw(results: Results, baseline: str | None) -> Figure:
    """Box plots of the Dice of the cases, mean over the seeds: for each group a line of panels, one an organ.

    In a panel the rows are below each other, so that many have room, each beside its name; a dashed line is the median
    of the row `baseline`, where the group has it.
    """
    groups = {
        name: list(dice.groupby(_ROW, observed=True))
        for name, dice in results.cases["Dice"].groupby(GROUP, observed=True)
    }
    organs = results.cases.index.unique("organ")
    heights = [1.0 + 0.25 * len(rows) for rows in groups.values()]
    figure = Figure(figsize=(min(3.0 + 1.8 * len(organs), 20.0), sum(heights)), layout="constrained")
    panels = figure.subplots(len(groups), len(organs), sharex=True, sharey="row", squeeze=False, height_ratios=heights)
    for axes, ((labeled, configuration), rows) in zip(panels, groups.items(), strict=True):
        axes[0].set_title(f"{configuration}, {labeled} labeled", loc="left")
        for organ, panel in zip(organs, axes, strict=True):
            _draw_organ(panel, organ, rows, baseline)
    return figure


def _draw_organ(axes: Axes, organ: str, rows: list[tuple[tuple[str, str], Series]], baseline: str | None) -> None:
    """The boxes of all rows, the first one on top."""
    dice = [values.xs(organ, level="organ").groupby("case").mean().dropna() for _, values in rows]
    names, titles = zip(*(name for name, _ in rows), strict=True)
    axes.boxplot(
        dice,
        positions=range(len(rows)),
        widths=0.7,
        orientation="horizontal",
        patch_artist=True,
        boxprops={"facecolor": COLORS[0], "alpha": 0.6},
        medianprops={"color": "black"},
        flierprops={"markersize": 2.5, "markeredgecolor": COLORS[0]},
    )
    if baseline in names:
        axes.axvline(dice[names.index(baseline)].median(), color="0.5", linestyle="--", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(rows)), titles)
    axes.set(xlabel=f"Dice, {organ}", xlim=(-0.02, 1.02), xticks=(0, 0.5, 1), ylim=(len(rows) - 0.4, -0.6))
