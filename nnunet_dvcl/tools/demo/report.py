"""What the demo shows: a table of Dice values, also as a file, and a picture."""

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from pandas import DataFrame

from nnunet_dvcl.figures import save_image, save_table
from nnunet_dvcl.tools.demo.phantom import ORGANS

_COLORS = ["#1f77b4", "#e6194b", "#3cb44b", "#ffe119", "#f58231", "#911eb4", "#46f0f0", "#4363d8", "#f032e6", "#bcf60c",
           "#fabebe", "#9a6324"]  # fmt: skip
_PALETTE = to_rgba_array(["none", *_COLORS], alpha=0.75)  # by label
_WINDOW = (-160, 240)  # of intensities shown, in Hounsfield units: the usual one for the abdomen


def read_dice(summary: Path) -> dict[str, float]:
    """Organ -> mean Dice over the test cases, from nnU-Net's ``summary.json``."""
    mean = json.loads(summary.read_text())["mean"]
    return {organ: mean[str(label)]["Dice"] for organ, label in ORGANS.items()}


def compare(dice: dict[str, dict[str, float]]) -> DataFrame:
    """A row an organ and, last, their mean; a column a title.

    dice: title, e.g. "nnU-Net" -> organ -> mean Dice.
    """
    table = DataFrame(dice)
    table.loc["mean"] = table.mean()
    return table


def table(dice: DataFrame) -> str:
    """As text, three decimals."""
    widths = [max(len(title), 10) + 2 for title in dice]
    lines = [f"{'':16}" + "".join(f"{title:>{width}}" for title, width in zip(dice, widths, strict=True))]
    for organ, *values in dice.itertuples():
        lines.append(f"{organ:16}" + "".join(f"{v:{width}.3f}" for v, width in zip(values, widths, strict=True)))
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def write_csv(dice: DataFrame, path: Path) -> None:
    """As comma-separated values, four decimals."""
    save_table(path, dice.map("{:.4f}".format).rename_axis("organ").reset_index())


def draw(raw: Path, predictions: dict[str, Path], dice: DataFrame, path: Path) -> None:
    """One test case from above and from the front: image, truth and each prediction, as a PNG.

    raw: the data set's folder; predictions: title -> folder of its predictions.
    """
    truth_file = min((raw / "labelsTs").glob("*.nii.gz"))
    case = truth_file.name.removesuffix(".nii.gz")
    image, truth = _read(raw / "imagesTs" / f"{case}_0000.nii.gz"), _read(truth_file)
    columns = {"image": np.zeros_like(truth), "truth": truth}
    for title, folder in predictions.items():
        columns[f"{title}\n(mean Dice of all test scans {dice[title]['mean']:.2f})"] = _read(folder / truth_file.name)

    figure = Figure(figsize=(17, 6.4), layout="constrained")
    axes = figure.subplots(2, len(columns))
    for axis, name in enumerate(("axial", "coronal")):
        index = _most_organs(truth, axis)
        axes[axis, 0].set_ylabel(name)
        for ax, (title, labels) in zip(axes[axis], columns.items(), strict=True):
            _show(ax, np.take(image, index, axis), np.take(labels, index, axis), upright=axis == 1)
            if axis == 0:
                ax.set_title(title)
    handles = [Patch(color=_COLORS[label - 1], label=organ.replace("_", " ")) for organ, label in ORGANS.items()]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    figure.suptitle(f"Test case {case}, which no training has seen")
    save_image(figure, path, dpi=110)


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def _most_organs(truth: np.ndarray, axis: int) -> int:
    """The slice that shows the most organs; of several, the one with the largest area."""
    slices = np.moveaxis(truth, axis, 0)
    return max(range(len(slices)), key=lambda i: (len(np.unique(slices[i])), np.count_nonzero(slices[i])))


def _show(ax, image: np.ndarray, labels: np.ndarray, upright: bool) -> None:
    origin = "lower" if upright else "upper"
    ax.imshow(image, cmap="gray", vmin=_WINDOW[0], vmax=_WINDOW[1], origin=origin)
    ax.imshow(_PALETTE[labels], interpolation="nearest", origin=origin)
    ax.set(xticks=[], yticks=[])
