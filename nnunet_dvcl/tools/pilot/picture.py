"""One picture of a pilot: the Dice of each validation case, or patient, with each trainer."""

from __future__ import annotations

import textwrap
from itertools import cycle

import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame

from nnunet_dvcl.figures import COLORS


def draw(dice: DataFrame, sentence: str, pairs: str = "cases") -> Figure:
    """A column a trainer, a gray line a case or patient, a bar at the mean.

    Args:
        dice: a line a case or patient, a column a trainer; nan where there is no value.
        sentence: the title.
        pairs: what the lines are, in words: "cases" or "patients".
    """
    places = np.arange(len(dice.columns))
    figure = Figure(figsize=(max(6.5, 2.0 * len(places)), 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(places, dice.to_numpy().T, color="0.7", linewidth=0.8, marker="o", markersize=3)
    for place, mean, color in zip(places, dice.mean(), cycle(COLORS), strict=False):
        axes.hlines(mean, place - 0.2, place + 0.2, color=color, linewidth=3, zorder=3)
        axes.annotate(f"{mean:.3f}", (place + 0.22, mean), color=color, va="center", weight="bold", zorder=3)
    axes.set_xticks(places, dice.columns)
    axes.set(
        xlim=(-0.5, len(places) - 0.3), ylim=(-0.02, 1.02), ylabel=f"Dice of the validation {pairs}, mean over organs"
    )
    axes.set_title("\n".join(textwrap.wrap(sentence, 100)), loc="left", fontsize=8)
    return figure
