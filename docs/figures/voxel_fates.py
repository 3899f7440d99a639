"""Which validation voxels are unreliable during a training, and what becomes of them.

Trains as nnUNetv2_train does, into a results folder of its own (the trainer's name with "Traced" behind), and notes
what network A makes of the same validation voxels after each epoch:

    python docs/figures/voxel_fates.py -d 501 -c 2d_seed0 -f 1 -tr nnUNetTrainerDVCL -o docs/assets

Writes voxel-fates.png, .svg and .csv. Runs on the CPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from os.path import dirname, join
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame
from scipy.ndimage import distance_transform_edt
from torch import Tensor

import nnunet_dvcl.trainers
from nnunet_dvcl.data.folders import find_plans_file
from nnunet_dvcl.diagnostics.validation_voxels import ValidationVoxels, draw_validation_patches
from nnunet_dvcl.figures import curve_styles, draw_curve, plain_style, save_picture
from nnunet_dvcl.losses import voxel_entropy
from nnunet_dvcl.networks import run_with_features
from nnunet_dvcl.voxels.entropy_split import split_by_entropy

FATES = ("reliable, right", "unreliable, right", "unreliable, wrong", "reliable, wrong")
GRAYS = ("0.9", "0.7", "0.4", "0.1")
NEAR = 1.5  # voxels from the next voxel of another class, center to center: the layer on each side of a border


class Trace(NamedTuple):
    """What network A made of V validation voxels after each of E epochs."""

    correct: np.ndarray  # [E, V] bool
    unreliable: np.ndarray  # [E, V] bool
    near_border: np.ndarray  # [V] bool


class Tracing:
    """The part of a trainer that notes after each epoch what became of the voxels."""

    num_patches = 16
    num_voxels = 8192

    def get_tr_and_val_datasets(self):
        datasets = super().get_tr_and_val_datasets()
        manager = self.configuration_manager
        images, labels = draw_validation_patches(datasets[1], self.num_patches, manager.patch_size, self.label_manager)
        self.traced = ValidationVoxels(images, labels, self.num_voxels, manager.batch_size)
        self.near_border = (distance_to_another_class(labels) <= NEAR).flatten()[self.traced.index]
        self.after_epochs = []
        return datasets

    def epoch_statistics(self) -> dict[str, float]:
        logits, _ = self.traced.look(partial(run_with_features, self.network), self.device)
        probabilities = logits.softmax(1)
        _, unreliable, _ = split_by_entropy(voxel_entropy(probabilities), self.config.entropy_alpha)
        self.after_epochs.append((probabilities.argmax(1) == self.traced.labels, unreliable))
        return super().epoch_statistics()

    def trace(self) -> Trace:
        correct, unreliable = (torch.stack(maps).numpy() for maps in zip(*self.after_epochs, strict=True))
        return Trace(correct, unreliable, self.near_border.numpy())


def distance_to_another_class(labels: Tensor) -> Tensor:
    """[P, *S] -> [P, *S], in voxels; inf in a patch of one class."""
    distance = np.full(labels.shape, np.inf)
    for patch, values in zip(distance, labels.numpy(), strict=True):
        for c in np.unique(values):
            inside = values == c
            if not inside.all():
                patch[inside] = distance_transform_edt(inside)[inside]
    return torch.from_numpy(distance)


def train(dataset: str, configuration: str, fold: int, name: str) -> Trace:
    """Trains `name` with its voxels traced."""
    plans_file = find_plans_file(dataset, "nnUNetPlans")
    with open(plans_file) as plans, open(join(dirname(plans_file), "dataset.json")) as dataset_json:
        trainer_class = type(f"{name}Traced", (Tracing, getattr(nnunet_dvcl.trainers, name)), {})
        plans = json.load(plans) | {"continue_training": False}
        trainer = trainer_class(plans, configuration, fold, json.load(dataset_json), torch.device("cpu"))
    trainer.run_training()
    return trainer.trace()


def fates(trace: Trace, epoch: int, unreliable: bool) -> np.ndarray:
    """Of the voxels that were (un)reliable after `epoch`: the shares of FATES after each epoch, [E, 4]."""
    chosen = trace.unreliable[epoch] == unreliable
    u, c = trace.unreliable[:, chosen], trace.correct[:, chosen]
    return np.stack([(~u & c).mean(1), (u & c).mean(1), (u & ~c).mean(1), (~u & ~c).mean(1)], axis=1)


def shares(trace: Trace) -> dict[str, np.ndarray]:
    """Name -> a share for each epoch."""
    with np.errstate(invalid="ignore"):
        u, wrong, near = trace.unreliable, ~trace.correct, trace.near_border

        def share(of: np.ndarray, among: np.ndarray) -> np.ndarray:
            return (of & among).sum(1) / among.sum(1)

        return {
            "unreliable voxels at a border": share(near, u),
            "all voxels at a border": np.full(len(u), near.mean()),
            "unreliable voxels that are wrong": share(wrong, u),
            "reliable voxels that are wrong": share(wrong, ~u),
            "wrong voxels that are unreliable": share(u, wrong),
        }


def rows(trace: Trace, epoch: int) -> Iterator[tuple]:
    for name, values in shares(trace).items():
        yield from ((name, i, f"{value:.4f}") for i, value in enumerate(values))
    for unreliable in (True, False):
        kind = "unreliable" if unreliable else "reliable"
        for fate, values in zip(FATES, fates(trace, epoch, unreliable).T, strict=True):
            yield from ((f"{kind} after epoch {epoch}: {fate}", i, f"{v:.4f}") for i, v in enumerate(values))


def draw(trace: Trace, epoch: int) -> Figure:
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, *right = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    styles = curve_styles(len(shares(trace)))
    for (name, values), look in zip(shares(trace).items(), styles, strict=True):
        draw_curve(left, values, name, **look)
    left.set(title="which voxels are unreliable", xlabel="epoch", ylabel="share", ylim=(0, 1))
    left.legend(fontsize=7)
    for axes, unreliable in zip(right, (True, False), strict=True):
        _draw_fates(axes, trace, epoch, unreliable)
    right[1].legend(fontsize=7, loc="lower right")
    return figure


def _draw_fates(axes: Axes, trace: Trace, epoch: int, unreliable: bool) -> None:
    later = fates(trace, epoch, unreliable)[epoch:]
    axes.stackplot(range(epoch, epoch + len(later)), later.T, labels=FATES, colors=GRAYS, edgecolor="black", lw=0.5)
    number = (trace.unreliable[epoch] == unreliable).sum()
    kind = "unreliable" if unreliable else "reliable"
    axes.set(title=f"{kind} after epoch {epoch} ({number} voxels)", xlabel="epoch", ylabel="share", ylim=(0, 1))
    axes.margins(x=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", required=True, metavar="DATASET")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION")
    parser.add_argument("-f", required=True, metavar="FOLD", type=int)
    parser.add_argument("-tr", default="nnUNetTrainerDVCL", metavar="TRAINER")
    parser.add_argument("-e", default=4, type=int, metavar="EPOCH", help="whose voxels are followed (%(default)s)")
    parser.add_argument("-o", default=".", metavar="FOLDER")
    args = parser.parse_args()
    trace = train(args.d, args.c, args.f, args.tr)
    with plain_style():
        table = DataFrame(rows(trace, args.e), columns=["share", "epoch", "value"])
        save_picture(draw(trace, args.e), args.o, "voxel-fates", table)


if __name__ == "__main__":
    main()
