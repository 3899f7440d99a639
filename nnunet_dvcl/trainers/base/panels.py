"""Which of the logged values are drawn together, under which title, in which unit and by which name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple


class Panel(NamedTuple):
    """Values of one kind. A trainer lists those of its own values in its attribute ``panels``."""

    title: str
    axis: str  # what the y axis shows, with its unit
    keys: tuple[str, ...] = ()  # without "ssl/"; patterns as in file names
    log_scale: bool = False
    first: bool = False  # before the loss terms


LOSS_TERMS = Panel("loss terms", "loss")  # and whatever has no other place
DICE = Panel("pseudo Dice of network A on validation patches", "Dice", ("dice", "dice_average"), first=True)

_NETWORKS = {"_A": ", network A", "_B": ", network B"}
_WORDS = {
    "accepted": "pseudo-labels that are accepted",
    "adversarial": "adversarial loss",
    "agreement": "the networks agree",
    "balanced": "balanced classifier",
    "bank_fill": "memory bank",
    "blended": "pseudo-labels changed by cubes",
    "certain": "the teacher is certain",
    "contrast": "contrast of voxel features",
    "cps": "cross pseudo supervision",
    "dice": "mean of all organs",
    "dice_average": "its moving average",
    "dvcl": "distance-aware contrast",
    "followed": "learned from the other one",
    "hqcl": "high-quality contrast",
    "local": "cubes seen one by one",
    "located": "cubes located rightly",
    "location": "places of cubes",
    "outlier_queries": "queries that are outliers",
    "pseudo_labels": "loss on pseudo-labels",
    "queue_fill": "candidate queue",
    "rampup": "ramp-up w(t)",
    "recovered": "patches put together again",
    "relevant_neighbors": "neighbors that are mutual",
    "supervised": "supervised loss",
    "total": "total, weighted",
    "unreliable": "unreliable voxels",
    "weight_ratio": "class weights",
    "val_neighbors_same": "all neighbors of the same class",
    "val_neighbors_same_correct": "the same, classified rightly",
    "val_ordinary_same": "ordinary neighbors, same class",
    "val_outlier_neighbors_same": "neighbors of outliers, same class",
    "val_outliers_wrong": "outliers, classified wrongly",
    "val_outsiders_differ": "all outsiders of other classes",
    "val_relevant_same": "relevant neighbors, same class",
    "val_unreliable_wrong": "all of them, classified wrongly",
}


def in_words(key: str) -> str:
    """A logged value, without "ssl/", as pictures name it."""
    key = key.removeprefix("gradient_")
    for ending, network in _NETWORKS.items():
        if key.endswith(ending):
            return in_words(key.removesuffix(ending)) + network
    return _WORDS.get(key, key.replace("_", " "))


def panels_of(*trainers: type) -> list[Panel]:
    """The panels of trainers and of all that they derive from, base classes first; of equal titles they are one."""
    panels: dict[str, Panel] = {}
    for owner in dict.fromkeys(owner for trainer in trainers for owner in reversed(trainer.__mro__)):
        for panel in vars(owner).get("panels", ()):
            before = panels.get(panel.title, panel._replace(keys=()))
            keys = tuple(dict.fromkeys(before.keys + panel.keys))
            panels[panel.title] = panel._replace(keys=keys, first=before.first or panel.first)
    return list(panels.values())


def group(keys: Iterable[str], panels: Sequence[Panel]) -> dict[Panel, list[str]]:
    """Every key in one panel; panels without a key are left out.

    Args:
        keys: logged keys without "ssl/".
        panels: in the order in which they are drawn; the loss terms stand behind those that come first.

    Returns:
        Panel -> its keys, in the order in which they are drawn.
    """
    left = list(dict.fromkeys(keys))
    found = {}
    for panel in panels:
        found[panel] = [key for pattern in panel.keys for key in left if fnmatchcase(key, pattern)]
        left = [key for key in left if key not in found[panel]]
    first = {panel: keys for panel, keys in found.items() if panel.first}
    return {panel: keys for panel, keys in {**first, LOSS_TERMS: left, **found}.items() if keys}
