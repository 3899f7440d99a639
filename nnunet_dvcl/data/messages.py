"""How a list of problems is shown to the user."""

from collections.abc import Iterable

SHOWN = 10


def bullet_list(items: Iterable[str]) -> str:
    """One item a line; the first ``SHOWN`` are named, the rest are counted."""
    items = list(items)
    lines = [f"  - {item}" for item in items[:SHOWN]]
    if len(items) > SHOWN:
        lines.append(f"  ... and {len(items) - SHOWN} more")
    return "\n".join(lines)
