"""One look for all pictures, and how a picture and its numbers get onto the disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import cycle, islice
from os.path import join
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from pandas import DataFrame

from nnunet_dvcl.files import replacing

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""Okabe and Ito's, which color-blind readers tell apart; without yellow, which is invisible on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*")
_DASHES = ("-", "--", "-.", ":")
_FEW_EPOCHS = 30  # below, each value gets a marker
_DPI, _MOST_PIXELS = 300, 3000  # of a PNG, and along its longer side


def plain_style() -> AbstractContextManager:
    """matplotlib's own style, whatever was set before: nnU-Net's plot leaves its huge fonts behind."""
    return style.context(["default", {"font.size": 9, "axes.titlesize": 9, "svg.hashsalt": "nnunet_dvcl"}])


def curve_styles(count: int) -> list[dict]:
    """`count` looks of curves that differ in color and, for gray prints, in dash and marker."""
    looks = zip(cycle(COLORS), cycle(_DASHES), cycle(MARKERS), strict=False)
    return [
        {"color": color, "linestyle": dash, "marker": marker, "markersize": 3.5, "linewidth": 1.2}
        for color, dash, marker in islice(looks, count)
    ]


def draw_curve(axes: Axes, values: Sequence[float], label: str, **look) -> None:
    """One value an epoch; nan leaves a gap."""
    markers = 1 if len(values) < _FEW_EPOCHS else len(values) // 10
    axes.plot(range(len(values)), values, label=label, markevery=markers, **look)


def count_epochs(axes: Axes) -> None:
    """An x axis of few and whole epochs."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))


def set_log_scale(axes: Axes) -> None:
    """A logarithmic y axis with few and plain numbers, also where it spans less than a decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def save_image(figure: Figure, file: str | os.PathLike, dpi: int) -> None:
    """Saves a figure in the format that the file's name ends with; an old file is replaced in one step."""
    kind = Path(file).suffix.removeprefix(".")
    # without the date, the same numbers give the same file
    metadata = {"Date": None} if kind == "svg" else None
    with replacing(str(file)) as partial:
        figure.savefig(partial, format=kind, dpi=dpi, metadata=metadata)


def save_table(file: str | os.PathLike, table: DataFrame) -> None:
    """Saves the columns of a table as comma-separated values; an old file is replaced in one step."""
    with replacing(str(file)) as partial:
        table.to_csv(partial, index=False, na_rep="nan", lineterminator="\r\n")


def save_picture(figure: Figure, folder: str, name: str, table: DataFrame) -> None:
    """Saves a figure as PNG and SVG and the numbers behind it as CSV, and prints what was written.

    Args:
        folder: made where it does not exist.
        name: of the files, without an ending.
        table: the numbers, without its index.
    """
    os.makedirs(folder, exist_ok=True)
    png, svg, csv = files = [join(folder, f"{name}.{kind}") for kind in ("png", "svg", "csv")]
    for file in (png, svg):
        save_image(figure, file, dpi=min(_DPI, int(_MOST_PIXELS / max(figure.get_size_inches()))))
    save_table(csv, table)
    print("Wrote", *files, sep="\n  ")
