"""What the demo shows: a table of Dice values, also as a file, and a picture."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunet_dvcl.tools.demo.phantom import ORGANS

Dice = dict[str, dict[str, float]]
"""Title, e.g. "nnU-Net" -> organ -> mean Dice over the test cases, in [0, 1]."""

_COLORS = ["#1f77b4", "#e6194b", "#3cb44b", "#ffe119", "#f58231", "#911eb4", "#46f0f0", "#4363d8", "#f032e6", "#bcf60c",
           "#fabebe", "#9a6324"]  # fmt: skip
_WINDOW = (-160, 240)  # of intensities shown, in Hounsfield units: the usual one for the abdomen


def read_dice(summary: Path) -> dict[str, float]:
    """Organ -> mean Dice over the test cases, from nnU-Net's ``summary.json``."""
    mean = json.loads(summary.read_text())["mean"]
    return {organ: mean[str(label)]["Dice"] for organ, label in ORGANS.items()}


def rows(dice: Dice) -> list[tuple[str, float, float, float]]:
    """(organ, first, second, difference) for each organ and, last, the mean over the organs."""
    first, second = dice.values()
    pairs = [(organ, first[organ], second[organ]) for organ in first]
    pairs.append(("mean", *(float(np.mean(list(values.values()))) for values in (first, second))))
    return [(organ, a, b, b - a) for organ, a, b in pairs]


def table(dice: Dice) -> str:
    """The rows as text, three decimals."""
    titles = [*dice, "difference"]
    lines = [f"{'':16}" + "".join(f"{title:>12}" for title in titles)]
    lines += [f"{organ:16}{a:12.3f}{b:12.3f}{change:+12.3f}" for organ, a, b, change in rows(dice)]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def write_csv(dice: Dice, path: Path) -> None:
    """The rows as comma-separated values, four decimals."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["organ", *dice, "difference"])
        writer.writerows([organ, *(f"{value:.4f}" for value in values)] for organ, *values in rows(dice))


def draw(raw: Path, predictions: dict[str, Path], dice: Dice, path: Path) -> None:
    """One test case from above and from the front: image, truth and each prediction, as a PNG.

    raw: the data set's folder; predictions: title -> folder of its predictions.
    """
    truth_file = min((raw / "labelsTs").glob("*.nii.gz"))
    case = truth_file.name.removesuffix(".nii.gz")
    image = _read(raw / "imagesTs" / f"{case}_0000.nii.gz")
    truth = _read(truth_file)
    means = {title: mean for title, mean in zip(dice, rows(dice)[-1][1:], strict=False)}
    columns = {"image": np.zeros_like(truth), "truth": truth}
    columns |= {
        f"{t}\n(mean Dice of all test scans {means[t]:.2f})": _read(p / truth_file.name) for t, p in predictions.items()
    }

    figure = Figure(figsize=(14, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(columns))
    for row, axis in enumerate((0, 1)):
        index = _most_organs(truth, axis)
        for ax, (title, labels) in zip(axes[row], columns.items(), strict=True):
            _show(ax, np.take(image, index, axis), np.take(labels, index, axis), upright=axis == 1)
            if row == 0:
                ax.set_title(title)
    axes[0, 0].set_ylabel("axial")
    axes[1, 0].set_ylabel("coronal")
    handles = [Patch(color=_COLORS[label - 1], label=organ.replace("_", " ")) for organ, label in ORGANS.items()]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    figure.suptitle(f"Test case {case}, which no training has seen")
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial, dpi=110)
    os.replace(partial, path)


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def _most_organs(truth: np.ndarray, axis: int) -> int:
    """The slice that shows the most organs; of several, the one with the largest area."""
    slices = np.moveaxis(truth, axis, 0)
    return max(range(len(slices)), key=lambda i: (len(np.unique(slices[i])), np.count_nonzero(slices[i])))


def _show(ax, image: np.ndarray, labels: np.ndarray, upright: bool) -> None:
    origin = "lower" if upright else "upper"
    ax.imshow(image, cmap="gray", vmin=_WINDOW[0], vmax=_WINDOW[1], origin=origin)
    ax.imshow(
        np.ma.masked_equal(labels, 0),
        cmap=ListedColormap(_COLORS),
        vmin=0.5,
        vmax=len(_COLORS) + 0.5,
        alpha=0.75,
        interpolation="nearest",
        origin=origin,
    )
    ax.set_xticks([])
    ax.set_yticks([])
