"""Folders of nnU-Net's that are a pilot's own, so that the user's splits, plans and results are not touched.

Raw data are the user's. The preprocessed data set has links to the user's preprocessed cases, a copy of the plans, and
splits of its own; the results are all in the pilot's folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunet_dvcl.data.storage import write_json
from nnunet_dvcl.tools.dataset import Dataset
from nnunet_dvcl.tools.split.draw import Fold

_JSON = ("dataset.json", "dataset_fingerprint.json")


@dataclass(frozen=True)
class Folders:
    """Those of a pilot."""

    root: Path

    @property
    def variables(self) -> dict[str, str]:
        """nnU-Net's environment variables that name them."""
        return {f"nnUNet_{name}": str(self.root / name) for name in ("preprocessed", "results")}

    def make(self, dataset: Dataset, plans: str, folds: list[Fold]) -> None:
        """Makes what is missing, from the user's folders. What the user's plans have now counts."""
        for folder in self.variables.values():
            Path(folder).mkdir(parents=True, exist_ok=True)
        preprocessed = self.root / "preprocessed" / dataset.name
        preprocessed.mkdir(exist_ok=True)
        for source in dataset.preprocessed.absolute().iterdir():
            if (source.is_dir() and not source.name.startswith(".")) or source.name in _JSON:  # none of its locks
                _link(preprocessed / source.name, source)
        file, content = preprocessed / f"{plans}.json", load_json(str(dataset.plans_file(plans)))
        if file.is_file():
            content["configurations"] = load_json(str(file))["configurations"] | content["configurations"]
        write_json(content, str(file))
        write_json(folds, str(preprocessed / dataset.splits_file.name))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """In this block, and in the commands that it starts, nnU-Net has these folders."""
        before = {name: os.environ.get(name) for name in self.variables}
        os.environ.update(self.variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() != target:
        link.unlink()
    if not link.is_symlink():
        link.symlink_to(target)
