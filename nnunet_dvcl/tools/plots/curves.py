"""``nnunet_dvcl plot curves``: pseudo Dice of each organ (the paper's Figure 5) and logged values over training."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import CategoricalDtype, DataFrame

from nnunet_dvcl import trainers
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.figures import count_epochs, curve_styles, draw_curve, plain_style, save_picture, set_log_scale
from nnunet_dvcl.tools.model_folders import TrainedFold, distinct_labels, find_folds, load_checkpoint
from nnunet_dvcl.trainers.base.panels import Panel, group, panels_of

HEADER = ["trainer", "configuration", "plans", "fold", "key", "organ", "epoch", "value"]
DICE, MEAN_DICE, SSL = "dice_per_class_or_region", "mean_fg_dice", "ssl/"
_COLUMNS, _MANY_COLUMNS, _FEW_AXES = 3, 6, 9
_WIDTH, _HEIGHT, _TITLE = 2.6, 2.1, 0.4  # inches: of one curve's axes, and of the title of a panel
_LETTERS = 38  # of a title, above one


def plot_curves(result_folders: Sequence[str], output_folder: str, keys: Sequence[str] = ("*",)) -> None:
    """Draws what was logged in several trainings side by side, one curve a trained fold.

    Writes ``curves_dice`` (a panel an organ and one of the mean) and, where a trainer of this package logged any,
    ``curves_ssl`` (a panel a value), as PNG, SVG and CSV.

    `result_folders` are those of trained models, with all their folds, or of single folds. `keys` are the logged values
    that ``curves_ssl`` shows: names without "ssl/", or patterns as in file names.

    Raises:
        UserError: a folder is no trained model's, the models have different organs, or no logged value has such a key.
    """
    table = _read(result_folders)
    logged = table[table["organ"] == ""].assign(name=lambda ssl: ssl["key"].str.removeprefix(SSL))
    chosen = _choose(keys, list(logged["name"].unique()))
    dice = table[table["organ"] != ""]
    # a trainer that is not here has the panels of the base
    classes = [getattr(trainers, name, trainers.nnUNetTrainerSSL) for name in logged["trainer"].unique()]
    with plain_style():
        _plot(dice, "organ", {Panel("", "pseudo Dice"): dice["organ"].unique()}, output_folder, "curves_dice")
        if chosen:
            shown = logged[logged["name"].isin(chosen)]
            _plot(shown, "name", group(chosen, panels_of(*classes)), output_folder, "curves_ssl")
        else:
            print("No curves_ssl: none of these trainings logged a value of nnunet_dvcl.")


def _choose(patterns: Sequence[str], logged: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if logged and not any(fnmatchcase(key, pattern) for key in logged):
            raise UserError(f"No logged value is named {pattern}. There are: {', '.join(logged)}.")
    return [key for key in logged if any(fnmatchcase(key, pattern) for pattern in patterns)]


def _read(result_folders: Sequence[str]) -> DataFrame:
    """The columns of `HEADER` and ``label``, which names the training: a line for each value that was logged."""
    folds = list(dict.fromkeys(fold for folder in result_folders for fold in find_folds(folder)))
    for fold in folds:
        if fold.organs() != folds[0].organs():
            raise UserError(
                f"{fold.folder} has the organs {', '.join(fold.organs())}, but {folds[0].folder} has "
                f"{', '.join(folds[0].organs())}: compare trainings of one data set."
            )
    labels = distinct_labels(folds)
    table = DataFrame(
        [
            (fold.trainer, fold.configuration, fold.plans, fold.fold, key, organ, epoch, float(value), label)
            for fold, label in zip(folds, labels, strict=True)
            for (key, organ), values in _logged(fold).items()
            for epoch, value in enumerate(values)
        ],
        columns=[*HEADER, "label"],
    )
    return table.astype({"label": CategoricalDtype(labels)})


def _logged(fold: TrainedFold) -> dict[tuple[str, str], Sequence[float]]:
    """What the newest checkpoint holds: key and organ, or "" of a value of this package -> one value an epoch."""
    file = fold.newest_checkpoint()
    logging: Mapping[str, list] = load_checkpoint(file).get("logging", {})
    if not logging.get(DICE):
        raise UserError(
            f'{file} holds no logged values: expected a checkpoint of nnU-Net\'s training, with the key "logging".'
        )
    organs = zip(fold.organs(), zip(*logging[DICE], strict=True), strict=True)
    return {
        **{(DICE, organ): values for organ, values in organs},
        (MEAN_DICE, "mean"): logging[MEAN_DICE],
        **{(key, ""): values for key, values in logging.items() if key.startswith(SSL)},
    }


def _plot(table: DataFrame, column: str, panels: Mapping[Panel, Sequence[str]], folder: str, name: str) -> None:
    """Axes for each value that `column` has, in panels beside and below each other, and the table."""
    counts = [len(values) for values in panels.values()]
    columns = _COLUMNS if sum(counts) <= _FEW_AXES else _MANY_COLUMNS
    places = _shelves(counts, columns)
    rows = max(place.row + place.rows for place in places)
    height = _HEIGHT + _TITLE * any(panel.title for panel in panels)
    figure = Figure(figsize=(_WIDTH * columns, height * rows), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    for (row, first, high, wide), (panel, values) in zip(places, panels.items(), strict=True):
        part = figure.add_subfigure(grid[row : row + high, first : first + wide])
        if panel.title:
            title = textwrap.fill(panel.title, _LETTERS * wide)
            part.suptitle(title, x=0.01, ha="left", weight="bold", size=9)
        for place, value in enumerate(values, start=1):
            axes = part.add_subplot(high, wide, place)
            _draw(axes, table[table[column] == value])
            axes.set(title=value, ylabel=panel.axis)
            if panel.log_scale:
                set_log_scale(axes)
    curves = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    figure.legend(curves.values(), curves.keys(), loc="outside lower center", ncols=4, frameon=False)
    save_picture(figure, folder, name, table[HEADER])


class _Place(NamedTuple):
    row: int
    column: int
    rows: int
    columns: int


def _shelves(counts: Sequence[int], columns: int) -> list[_Place]:
    """Where panels of so many axes stand, in their order: beside each other as long as there is room."""
    places, row, column = [], 0, 0
    for count in counts:
        wide, high = min(count, columns), math.ceil(count / columns)
        if column + wide > columns:
            row, column = row + 1, 0
        places.append(_Place(row, column, high, wide))
        column += wide
        if column == columns:
            row, column = row + high, 0
    return places


def _draw(axes: Axes, table: DataFrame) -> None:
    """One curve a training; one without values is left out, and the others keep their looks."""
    curves = table.groupby("label", observed=False)["value"]
    for (label, values), look in zip(curves, curve_styles(len(curves)), strict=True):
        if len(values):
            draw_curve(axes, values, label, **look)
    axes.set_xlabel("epoch")
    count_epochs(axes)
    axes.grid(alpha=0.3)
