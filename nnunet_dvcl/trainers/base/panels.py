"""Which of the logged values are drawn together, under which title and in which unit."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple


class Panel(NamedTuple):
    """Values of one kind."""

    title: str
    axis: str  # what the y axis shows, with its unit
    keys: tuple[str, ...] = ()  # without "ssl/"; patterns as in file names
    log_scale: bool = False


_LOSS_TERMS = Panel("loss terms", "loss")  # and whatever has no other place
_OTHERS = (
    Panel("weight of the consistency terms", "weight", ("rampup",)),
    Panel("entropy threshold τ [nats]", "τ [nats]", ("threshold_A", "threshold_B")),
    Panel("share of unlabeled voxels", "share", ("unreliable_A", "unreliable_B", "agreement")),
    Panel("share of capacity filled", "share", ("bank_fill", "queue_fill")),
    Panel("share of DVCL's neighbors and queries", "share", ("relevant_neighbors", "outlier_queries")),
    Panel(
        "neighborhoods of unreliable validation voxels [share]",
        "share",
        (
            "val_outsiders_differ",
            "val_neighbors_same",
            "val_neighbors_same_correct",
            "val_relevant_same",
            "val_ordinary_same",
            "val_outlier_neighbors_same",
            "val_outliers_wrong",
            "val_unreliable_wrong",
        ),
    ),
    Panel(
        "gradient of a term at the last decoder features [norm relative to the supervised one]",
        "relative norm",
        ("gradient_*",),
        log_scale=True,
    ),
)


def group(keys: Iterable[str]) -> dict[Panel, list[str]]:
    """Every key in one panel; panels without a key are left out.

    Args:
        keys: logged keys without "ssl/".

    Returns:
        Panel -> its keys, in the order in which they are drawn.
    """
    left = list(dict.fromkeys(keys))
    panels = {}
    for panel in _OTHERS:
        panels[panel] = [key for pattern in panel.keys for key in left if fnmatchcase(key, pattern)]
        left = [key for key in left if key not in panels[panel]]
    return {panel: found for panel, found in {_LOSS_TERMS: left, **panels}.items() if found}
