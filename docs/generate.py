"""Writes the tables in docs/ that say what the trainers are: ``make docs``."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path

from nnunet_dvcl import trainers
from nnunet_dvcl.options import words_of
from nnunet_dvcl.trainers.base import TrainingConfig

DOCS = Path(__file__).parent
NAMES = [name for name in trainers.__all__ if name != "nnUNetTrainerSSL"]


def trainers_table() -> str:
    """What each name that ``-tr`` takes trains and where it comes from, its docstring's first line; what it costs."""
    rows = ["| Trainer | Trains | Step |", "|---|---|---|"]
    for name in NAMES:
        summary = getattr(trainers, name).__doc__.splitlines()[0].removesuffix(".").replace("``", "`")
        passes = getattr(getattr(trainers, name), "passes", None)
        rows.append(f"| `{name}` | {summary} | {passes.steps_of_nnunet if passes else 1:.1f} |")
    return "\n".join(rows)


def options_tables() -> str:
    """The keys of each config class, under what reads it."""
    sections = []
    for config in _configs():
        own = [key for key in inspect.get_annotations(config) if key in config.model_fields]
        if not own:
            continue
        meanings = dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(config), re.MULTILINE))
        readers = [name for name in NAMES if issubclass(getattr(trainers, name).config_class, config)]
        read_by = "all trainers" if len(readers) == len(NAMES) else _listed(readers)
        rows = [f"### {config.__name__}", "", f"{config.__doc__.splitlines()[0]} Read by {read_by}.", ""]
        rows += ["| Key | Default | Allowed | Meaning |", "|---|---|---|---|"]
        for key in own:
            field = config.model_fields[key]
            rows.append(f"| `{key}` | `{json.dumps(field.default)}` | {words_of(field)} | {meanings.get(key, '')} |")
        sections.append("\n".join(rows))
    return "\n\n".join(sections)


def _configs() -> list[type[TrainingConfig]]:
    """Those that the trainers name and all that these derive from, base classes first."""
    named = [getattr(trainers, name).config_class for name in NAMES]
    found = dict.fromkeys(c for config in named for c in reversed(config.__mro__) if issubclass(c, TrainingConfig))
    return list(found)


def _listed(readers: list[str]) -> str:
    without = [name for name in NAMES if name not in readers]
    if len(without) < len(readers):
        return "all but " + ", ".join(f"`{name}`" for name in without)
    return ", ".join(f"`{name}`" for name in readers)


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "trainers": ("reference/commands.md", trainers_table),
    "options": ("reference/configuration.md", options_tables),
}


def generated(name: str) -> tuple[Path, str]:
    """The page of a table, and what the page should hold."""
    file, make = TABLES[name]
    page = DOCS / file
    begin, end = f"<!-- generated: {name}, by make docs -->", f"<!-- end: {name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    return page, f"{before}{begin}\n\n{make()}\n\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    for table in TABLES:
        page, text = generated(table)
        page.write_text(text, encoding="utf-8")
        print(f"{page}: {table}")
