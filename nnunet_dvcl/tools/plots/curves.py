"""``nnunet_dvcl plot curves``: pseudo Dice of each organ (the paper's Figure 5) and logged values over training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.figures import curve_styles, draw_curve, plain_style, save_picture, set_log_scale
from nnunet_dvcl.tools.model_folders import TrainedFold, distinct_labels, find_folds, load_checkpoint
from nnunet_dvcl.trainers.base.panels import Panel, group

HEADER = ("trainer", "configuration", "plans", "fold", "key", "organ", "epoch", "value")
DICE, MEAN_DICE, SSL = "dice_per_class_or_region", "mean_fg_dice", "ssl/"
_COLUMNS = 3
_PANEL = (2.6, 2.1)  # inches


@dataclass(frozen=True)
class Training:
    """One fold and the values that its newest checkpoint holds."""

    fold: TrainedFold
    label: str
    logging: dict[str, list]

    def dice(self) -> dict[str, list[float]]:
        """Organ, then "mean" -> one pseudo Dice an epoch."""
        of_epochs = zip(*self.logging[DICE], strict=True)
        return {**dict(zip(self.fold.organs(), of_epochs, strict=True)), "mean": self.logging[MEAN_DICE]}

    def ssl(self) -> dict[str, list[float]]:
        """Key without "ssl/" -> one value an epoch."""
        return {key.removeprefix(SSL): values for key, values in self.logging.items() if key.startswith(SSL)}

    def rows(self, key: str, organ: str, values: Sequence[float]) -> Iterator[tuple]:
        names = (self.fold.trainer, self.fold.configuration, self.fold.plans, self.fold.fold)
        return ((*names, key, organ, epoch, float(value)) for epoch, value in enumerate(values))


def plot_curves(result_folders: Sequence[str], output_folder: str, keys: Sequence[str] = ("*",)) -> None:
    """Draws what was logged in several trainings side by side, one curve a trained fold.

    Writes ``curves_dice`` (a panel an organ and one of the mean) and, where a trainer of this package logged any,
    ``curves_ssl`` (a panel a value) into `output_folder`, as PNG, SVG and CSV.

    Args:
        result_folders: of trained models, with all their folds, or of single folds.
        output_folder: made where it does not exist.
        keys: which logged values ``curves_ssl`` shows: names without "ssl/", or patterns as in file names.

    Raises:
        UserError: a folder is no trained model's, the models have different organs, or no logged value has such a key.
    """
    trainings = _read(result_folders)
    logged = list(dict.fromkeys(key for training in trainings for key in training.ssl()))
    chosen = _choose(keys, logged)
    with plain_style():
        _plot_dice(trainings, output_folder)
        if chosen:
            _plot_ssl(trainings, chosen, output_folder)
        else:
            print("No curves_ssl: none of these trainings logged a value of nnunet_dvcl.")


def _choose(patterns: Sequence[str], logged: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if logged and not any(fnmatchcase(key, pattern) for key in logged):
            raise UserError(f"No logged value is named {pattern}. There are: {', '.join(logged)}.")
    return [key for key in logged if any(fnmatchcase(key, pattern) for pattern in patterns)]


def _read(result_folders: Sequence[str]) -> list[Training]:
    folds = list(dict.fromkeys(fold for folder in result_folders for fold in find_folds(folder)))
    _check_same_organs(folds)
    labels = distinct_labels(folds)
    return [Training(fold, label, _logging(fold)) for fold, label in zip(folds, labels, strict=True)]


def _check_same_organs(folds: Sequence[TrainedFold]) -> None:
    first = folds[0]
    for fold in folds:
        if fold.organs() != first.organs():
            raise UserError(
                f"{fold.folder} has the organs {', '.join(fold.organs())}, but {first.folder} has "
                f"{', '.join(first.organs())}: compare trainings of one data set."
            )


def _logging(fold: TrainedFold) -> dict[str, list]:
    file = fold.newest_checkpoint()
    logging = load_checkpoint(file).get("logging", {})
    if not logging.get(DICE):
        raise UserError(
            f'{file} holds no logged values: expected a checkpoint of nnU-Net\'s training, with the key "logging".'
        )
    return logging


def _plot_dice(trainings: Sequence[Training], folder: str) -> None:
    titles = list(trainings[0].dice())
    figure = Figure(figsize=_size(len(titles)), layout="constrained")
    for axes, title in zip(_grid(figure, len(titles)), titles, strict=True):
        _draw(axes, trainings, [training.dice()[title] for training in trainings])
        axes.set_title(title)
        axes.set_ylabel("pseudo Dice")
    _legend(figure, figure.axes)
    rows = [
        row
        for training in trainings
        for organ, values in training.dice().items()
        for row in training.rows(MEAN_DICE if organ == "mean" else DICE, organ, values)
    ]
    save_picture(figure, folder, "curves_dice", HEADER, rows)


def _plot_ssl(trainings: Sequence[Training], chosen: Sequence[str], folder: str) -> None:
    panels = group(chosen)
    heights = [_size(len(keys))[1] + 0.3 for keys in panels.values()]  # and the title
    figure = Figure(figsize=(_size(_COLUMNS)[0], sum(heights)), layout="constrained")
    parts = figure.subfigures(len(panels), height_ratios=heights, squeeze=False)[:, 0]
    for part, (panel, keys) in zip(parts, panels.items(), strict=True):
        _plot_panel(part, panel, keys, trainings)
    _legend(figure, [axes for part in parts for axes in part.axes])
    rows = [
        row
        for training in trainings
        for key, values in training.ssl().items()
        if key in chosen
        for row in training.rows(f"{SSL}{key}", "", values)
    ]
    save_picture(figure, folder, "curves_ssl", HEADER, rows)


def _plot_panel(part: SubFigure, panel: Panel, keys: Sequence[str], trainings: Sequence[Training]) -> None:
    part.suptitle(panel.title, x=0.01, ha="left", weight="bold", size=9)
    for axes, key in zip(_grid(part, len(keys)), keys, strict=True):
        _draw(axes, trainings, [training.ssl().get(key, []) for training in trainings])
        axes.set_title(key)
        axes.set_ylabel(panel.axis)
        if panel.log_scale:
            set_log_scale(axes)


def _size(count: int) -> tuple[float, float]:
    """Width and height in inches of `count` panels."""
    width, height = _PANEL
    return width * _COLUMNS, height * math.ceil(count / _COLUMNS)


def _grid(figure: Figure | SubFigure, count: int) -> list[Axes]:
    """`count` axes of one size, row by row."""
    return [figure.add_subplot(math.ceil(count / _COLUMNS), _COLUMNS, place + 1) for place in range(count)]


def _draw(axes: Axes, trainings: Sequence[Training], values: Sequence[Sequence[float]]) -> None:
    """One curve a training; one without values is left out, and the others keep their looks."""
    for training, curve, look in zip(trainings, values, curve_styles(len(trainings)), strict=True):
        if len(curve):
            draw_curve(axes, curve, training.label, **look)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(alpha=0.3)


def _legend(figure: Figure, all_axes: Sequence[Axes]) -> None:
    found = {}
    for axes in all_axes:
        found |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=4, frameon=False)
