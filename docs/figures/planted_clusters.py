"""Planted clusters: what DVCL's neighbors, NPS, QDS and loss do where the truth is known.

    python docs/figures/planted_clusters.py

writes planted-clusters.png, .svg and .csv into docs/assets. Features are planted on a sphere, where the cosine of two
features is the cosine of their angle; neighborhoods and loss are the package's own.
docs/explanation/planted-clusters.md tells what is planted and what comes out.
"""

import csv
import itertools
import math
import os
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor
from torch.nn import functional as F

from nnunet_dvcl.losses import DistanceAwareContrastiveLoss, Neighborhoods

ASSETS = Path(__file__).parents[1] / "assets"
SEEDS = range(5)

NUM_CLASSES = 4
CENTERS = ((-135, 20), (-45, -20), (45, 20), (135, -20))  # longitude and latitude, degrees
SPREAD = 6.0  # standard deviation of a cluster along each direction, degrees
MEMBERS, NOISY, OUTLIERS = 60, 8, 6  # members and noisy neighbors of each cluster; outliers in all
FROM_CLUSTERS = 40.0  # of an outlier to every center, degrees
SPACINGS = (45.0, 30.0, 15.0)  # between two outliers, at least, degrees

HINTS = {"no hint": 0.0, "weak hint": 0.5}
STRATEGIES = {
    "NPS and QDS": (True, True),
    "without NPS": (False, True),
    "without QDS": (True, False),
    "without both": (False, False),
}


class Planted(NamedTuple):
    """N voxels: 0 member, 1 noisy neighbor, 2 outlier."""

    features: Tensor  # [N, 3] float64, of length 1
    classes: Tensor  # [N] int64, the true class
    role: Tensor  # [N] int64


# --------------------------------------------------------------------------- what is planted


def plant(seed: int, spacing: float = SPACINGS[0]) -> Planted:
    """Clusters, noisy neighbors at their border that belong to another class, and outliers far from everything."""
    generator = torch.Generator().manual_seed(seed)
    centers = _unit(torch.tensor(CENTERS, dtype=torch.float64))
    features, classes, role = [], [], []
    for c, center in enumerate(centers):
        offset = SPREAD * torch.randn(MEMBERS, 2, dtype=torch.float64, generator=generator)
        border = SPREAD * (2 + torch.rand(NOISY, dtype=torch.float64, generator=generator))
        features += [_around(center, distance, generator) for distance in (offset.norm(dim=1), border)]
        classes += [c] * MEMBERS + [(c + 1 + i % (NUM_CLASSES - 1)) % NUM_CLASSES for i in range(NOISY)]
        role += [0] * MEMBERS + [1] * NOISY
    features.append(_lonely(centers, spacing, generator))
    classes += torch.randint(NUM_CLASSES, (OUTLIERS,), generator=generator).tolist()
    return Planted(torch.cat(features), torch.tensor(classes), torch.tensor(role + [2] * OUTLIERS))


def _unit(degrees: Tensor) -> Tensor:
    """[n, 2] longitude and latitude -> [n, 3]."""
    lon, lat = torch.deg2rad(degrees).T
    return torch.stack((lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()), 1)


def _around(center: Tensor, degrees: Tensor, generator: torch.Generator) -> Tensor:
    """One point for each distance from the center, in a random direction: [n, 3]."""
    direction = torch.randn(len(degrees), 3, dtype=torch.float64, generator=generator)
    direction = F.normalize(direction - (direction @ center)[:, None] * center, dim=1)
    angle = torch.deg2rad(degrees)[:, None]
    return angle.cos() * center + angle.sin() * direction


def _lonely(centers: Tensor, spacing: float, generator: torch.Generator) -> Tensor:
    """Random points far from the centers and from each other: [OUTLIERS, 3]."""
    near_center, near_outlier = (math.cos(math.radians(degrees)) for degrees in (FROM_CLUSTERS, spacing))
    while True:  # the first few may leave no room for the last
        found = centers[:0]
        for point in F.normalize(torch.randn(1000, 3, dtype=torch.float64, generator=generator), dim=1):
            if (centers @ point).max() < near_center and not (found @ point > near_outlier).any():
                found = torch.cat((found, point[None]))
            if len(found) == OUTLIERS:
                return found


# --------------------------------------------------------------------------- what is measured


def neighborhoods(planted: Planted) -> Neighborhoods:
    """Of every voxel, with the method's default values."""
    return DistanceAwareContrastiveLoss().neighborhoods(planted.features, torch.arange(len(planted.features)))


def relevant_shares(planted: Planted) -> dict[str, float]:
    """NPS: the share of neighbors that are relevant, by who asks and whether the neighbor is of the asker's class."""
    found = neighborhoods(planted)
    same = planted.classes[found.neighbors] == planted.classes[:, None]
    asks = {role: (planted.role == role)[:, None] for role in (0, 1)}
    cases = {
        "same class": same & (asks[0] | asks[1]),
        "other class": ~same & (asks[0] | asks[1]),
        "other class, a member asks": ~same & asks[0],
        "other class, a noisy neighbor asks": ~same & asks[1],
    }
    return {case: found.relevant[pairs].double().mean().item() for case, pairs in cases.items()}


def outlier_shares(planted: Planted) -> dict[str, float]:
    """QDS: the share of the outliers, members and noisy neighbors that are taken for outliers."""
    outlier = neighborhoods(planted).outlier.double()
    names = ("members dropped", "noisy neighbors dropped", "outliers dropped")
    return {name: outlier[planted.role == role].mean().item() for role, name in enumerate(names)}


def separate(planted: Planted, seed: int, hint: float, nps: bool = True, qds: bool = True) -> tuple[Tensor, Tensor]:
    """Minimizes the loss on free logits, one row a voxel: predictions before and after, [N, C] each.

    The loss knows no class. The logits start as noise of deviation 0.5 plus `hint` for the true class.
    """
    noise = torch.randn(
        len(planted.classes), NUM_CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(1000 + seed)
    )
    logits = (0.5 * noise + hint * F.one_hot(planted.classes, NUM_CLASSES)).requires_grad_()
    before = logits.detach().softmax(1)
    loss = DistanceAwareContrastiveLoss(partition_neighbors=nps, detect_outliers=qds)
    found = neighborhoods(planted)
    optimizer = torch.optim.Adam([logits], 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        p = logits.softmax(1)
        loss.score(p, p, found).backward()
        optimizer.step()
    return before, logits.detach().softmax(1)


def assigned(planted: Planted, p: Tensor) -> Tensor:
    """p with its classes in the order that fits the members best; the loss cannot know their names."""
    predicted, members = p.argmax(1), planted.role == 0

    def hits(order: tuple[int, ...]) -> int:
        return int((torch.tensor(order)[predicted] == planted.classes)[members].sum())

    best = max(itertools.permutations(range(NUM_CLASSES)), key=hits)
    return p[:, torch.tensor(best).argsort()]


def quality(planted: Planted, p: Tensor) -> dict[str, float]:
    """Mean p_m·p_n of members of one cluster and of two, and shares of voxels with their true class."""
    members = planted.role == 0
    agreement, c = p[members] @ p[members].T, planted.classes[members]
    same, other = c[:, None] == c, c[:, None] != c
    right = (assigned(planted, p).argmax(1) == planted.classes).double()
    return {
        "agreement within a cluster": agreement[same.fill_diagonal_(False)].mean().item(),
        "agreement between clusters": agreement[other].mean().item(),
        "members right": right[members].mean().item(),
        "noisy neighbors right": right[planted.role == 1].mean().item(),
    }


def measure(seed: int) -> dict[tuple[str, str, str], float]:
    """(part, case, quantity) -> value, for one seed."""
    planted = plant(seed)
    values = {("NPS", case, "share relevant"): share for case, share in relevant_shares(planted).items()}
    for spacing in SPACINGS:
        case = f"outliers at least {spacing:.0f} degrees apart"
        values |= {("QDS", case, name): v for name, v in outlier_shares(plant(seed, spacing)).items()}
    for start, hint in HINTS.items():
        for strategies, switches in STRATEGIES.items():
            before, after = separate(planted, seed, hint, *switches)
            values |= {("loss", f"{start}, {strategies}", name): v for name, v in quality(planted, after).items()}
        values |= {("loss", f"{start}, before", name): v for name, v in quality(planted, before).items()}
    return values


def table() -> list[list[str]]:
    """The rows of the CSV file: mean, smallest and largest value over the seeds, three decimals."""
    runs = [measure(seed) for seed in SEEDS]
    rows = [["part", "case", "quantity", "mean", "min", "max"]]
    for key in runs[0]:
        values = [run[key] for run in runs]
        rows.append([*key, *(f"{value:.3f}" for value in (np.mean(values), min(values), max(values)))])
    return rows


# --------------------------------------------------------------------------- the picture

COLORS = np.array([[0.0, 0.45, 0.70], [0.90, 0.62, 0.0], [0.0, 0.62, 0.45], [0.80, 0.40, 0.70]])  # Okabe and Ito's
MARKERS, SIZES = ("o", "D", "*"), (9, 22, 110)


def draw(planted: Planted) -> Figure:
    """What is planted, what NPS and QDS say of it, and the predictions before and after."""
    found = neighborhoods(planted)
    predictions = separate(planted, 0, HINTS["weak hint"])
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic(
        [["planted", "cluster"], ["before", "after"]],
        per_subplot_kw={name: {"projection": "mollweide"} for name in ("planted", "before", "after")},
    )
    truth = COLORS[planted.classes]
    _globe(axes["planted"], planted, truth, "(a) Planted. Color: true class. Ring: dropped by QDS")
    lon, lat = _angles(planted.features[found.outlier])
    axes["planted"].scatter(lon, lat, s=230, facecolors="none", edgecolors="black", linewidths=1.2, clip_on=False)
    _one_cluster(axes["cluster"], planted, found, truth)
    for name, letter, p in zip(("before", "after"), "cd", predictions, strict=True):
        right = quality(planted, p)["members right"]
        mixed = assigned(planted, p).numpy() @ COLORS
        title = f"({letter}) {name.capitalize()} minimizing the loss. Color: prediction. {right:.0%} of members right"
        _globe(axes[name], planted, mixed, title)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _angles(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude in radians."""
    return torch.atan2(features[:, 1], features[:, 0]).numpy(), features[:, 2].asin().numpy()


def _globe(ax, planted: Planted, colors: np.ndarray, title: str) -> None:
    lon, lat = _angles(planted.features)
    _scatter(ax, lon, lat, planted.role, colors)
    ax.grid(color="0.85", linewidth=0.5)
    ax.set_xticklabels([])
    ax.set_yticklabels([])
    ax.set_title(title, fontsize=10)


def _scatter(ax, x: np.ndarray, y: np.ndarray, role: Tensor, colors: np.ndarray, scale: float = 1.0) -> None:
    for kind, (marker, size) in enumerate(zip(MARKERS, SIZES, strict=True)):
        shown = (role == kind).numpy()
        style = {"edgecolors": "black", "linewidths": 0.6} if kind else {"linewidths": 0}
        style |= {"marker": marker, "zorder": 3, "clip_on": False}
        ax.scatter(x[shown], y[shown], s=scale * size, c=colors[shown].clip(0, 1), **style)


def _one_cluster(ax, planted: Planted, found: Neighborhoods, colors: np.ndarray, c: int = 2) -> None:
    """The links of each voxel to its neighbors around one center, in degrees; a tangent plane."""
    lon, lat = np.deg2rad(CENTERS[c])
    east = np.array([-np.sin(lon), np.cos(lon), 0])
    north = np.array([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])
    features = planted.features.numpy()
    near = features @ _unit(torch.tensor([CENTERS[c]], dtype=torch.float64))[0].numpy() > math.cos(math.radians(30))
    x, y = np.rad2deg(features @ east), np.rad2deg(features @ north)
    for m in np.flatnonzero(near & (planted.role == 1).numpy()):
        for n, relevant in zip(found.neighbors[m].tolist(), found.relevant[m].tolist(), strict=True):
            style = {"color": "black", "linewidth": 1.4} if relevant else {"color": "0.55", "linewidth": 0.8}
            ax.plot([x[m], x[n]], [y[m], y[n]], linestyle="-" if relevant else "--", zorder=1, **style)
    _scatter(ax, x[near], y[near], planted.role[torch.from_numpy(near)], colors[near], scale=2.0)
    ax.set_aspect("equal")
    ax.set_xlim(-24, 24)
    ax.set_ylim(-20, 20)
    ax.set_xlabel("degrees", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.set_title("(b) One cluster: the neighbors of its noisy neighbors", fontsize=10)


def _legend() -> list[Line2D]:
    names = ("member", "noisy neighbor", "outlier")
    handles = [
        Line2D([], [], linestyle="", marker=marker, markersize=size**0.5 + 1, color="0.5", label=name)
        for name, marker, size in zip(names, MARKERS, SIZES, strict=True)
    ]
    handles.append(Line2D([], [], color="black", linewidth=1.4, label="relevant, weight 1"))
    handles.append(Line2D([], [], color="0.55", linewidth=0.8, linestyle="--", label="ordinary, weight 0.5"))
    return handles


# --------------------------------------------------------------------------- files


def write(folder: Path) -> None:
    """planted-clusters.csv, .png and .svg; the same files for every run on one machine."""
    matplotlib.rcParams["svg.hashsalt"] = "planted-clusters"
    figure, metadata = draw(plant(0)), {"png": {"Software": None}, "svg": {"Date": None}}
    for kind, entries in metadata.items():
        partial = folder / f"planted-clusters.{kind}.partial"
        figure.savefig(partial, format=kind, dpi=150, metadata=entries)
        os.replace(partial, folder / f"planted-clusters.{kind}")
    partial = folder / "planted-clusters.csv.partial"
    with open(partial, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table())
    os.replace(partial, folder / "planted-clusters.csv")


if __name__ == "__main__":
    write(ASSETS)
