"""``nnunet_dvcl plot curves``: pseudo Dice of each organ (the paper's Figure 5) and logged values over training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas import CategoricalDtype, DataFrame

from nnunet_dvcl import trainers
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.figures import curve_styles, draw_curve, plain_style, save_picture, set_log_scale
from nnunet_dvcl.tools.model_folders import TrainedFold, distinct_labels, find_folds, load_checkpoint
from nnunet_dvcl.trainers.base.panels import Panel, group, panels_of

HEADER = ["trainer", "configuration", "plans", "fold", "key", "organ", "epoch", "value"]
DICE, MEAN_DICE, SSL = "dice_per_class_or_region", "mean_fg_dice", "ssl/"
_COLUMNS = 3
_WIDTH, _HEIGHT, _TITLE = 2.6, 2.1, 0.3  # inches: of one curve's axes, and of the title of a panel


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
    """Axes for each value that `column` has, in panels below each other, and the table."""
    rows = [math.ceil(len(values) / _COLUMNS) for values in panels.values()]
    heights = [_HEIGHT * count + _TITLE * bool(panel.title) for count, panel in zip(rows, panels, strict=True)]
    figure = Figure(figsize=(_WIDTH * _COLUMNS, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(panels), height_ratios=heights, squeeze=False)[:, 0]
    for part, count, (panel, values) in zip(parts, rows, panels.items(), strict=True):
        if panel.title:
            part.suptitle(panel.title, x=0.01, ha="left", weight="bold", size=9)
        for place, value in enumerate(values, start=1):
            axes = part.add_subplot(count, _COLUMNS, place)
            _draw(axes, table[table[column] == value])
            axes.set(title=value, ylabel=panel.axis)
            if panel.log_scale:
                set_log_scale(axes)
    curves = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    figure.legend(curves.values(), curves.keys(), loc="outside lower center", ncols=4, frameon=False)
    save_picture(figure, folder, name, table[HEADER])


def _draw(axes: Axes, table: DataFrame) -> None:
    """One curve a training; one without values is left out, and the others keep their looks."""
    curves = table.groupby("label", observed=False)["value"]
    for (label, values), look in zip(curves, curve_styles(len(curves)), strict=True):
        if len(values):
            draw_curve(axes, values, label, **look)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(alpha=0.3)
