"""Which of the logged values are drawn together, under which title and in which unit."""

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


LOSS_TERMS = Panel("loss terms", "loss")  # and whatever has no other place


def panels_of(*trainers: type) -> list[Panel]:
    """The panels of trainers and of all that they derive from, base classes first; of equal titles they are one."""
    panels: dict[str, Panel] = {}
    for owner in dict.fromkeys(owner for trainer in trainers for owner in reversed(trainer.__mro__)):
        for panel in vars(owner).get("panels", ()):
            before = panels.get(panel.title, panel._replace(keys=()))
            panels[panel.title] = panel._replace(keys=tuple(dict.fromkeys(before.keys + panel.keys)))
    return list(panels.values())


def group(keys: Iterable[str], panels: Sequence[Panel]) -> dict[Panel, list[str]]:
    """Every key in one panel; panels without a key are left out.

    Args:
        keys: logged keys without "ssl/".
        panels: in the order in which they are drawn.

    Returns:
        Panel -> its keys, in the order in which they are drawn.
    """
    left = list(dict.fromkeys(keys))
    found = {}
    for panel in panels:
        found[panel] = [key for pattern in panel.keys for key in left if fnmatchcase(key, pattern)]
        left = [key for key in left if key not in found[panel]]
    return {panel: keys for panel, keys in {LOSS_TERMS: left, **found}.items() if keys}
