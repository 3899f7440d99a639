"""What is drawn, and what is written beside it."""

import csv
import json
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

LABELS = {"background": 0, "spleen": 2, "liver": 1}


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """Every figure that is saved, once for each file."""
    saved = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), savefig(self, *a, **k)))
    return saved


@pytest.fixture
def table():
    """``table(file)``: the rows of a CSV file as dicts."""

    def read(file: Path) -> list[dict[str, str]]:
        with open(file, newline="") as handle:
            return list(csv.DictReader(handle))

    return read


@pytest.fixture
def train(tmp_path):
    """``train(trainer, ...)``: a model's folder as nnU-Net leaves it after training one fold."""

    def write(
        trainer="nnUNetTrainerDVCL",
        configuration="3d_fullres",
        plans="nnUNetPlans",
        fold=0,
        checkpoint="checkpoint_final.pth",
        content=None,
        labels=LABELS,
        dataset="Dataset501_Organs",
    ) -> Path:
        model = tmp_path / "results" / dataset / f"{trainer}__{plans}__{configuration}"
        (model / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
        (model / "dataset.json").write_text(json.dumps({"labels": labels}))
        torch.save(content or {}, model / f"fold_{fold}" / checkpoint)
        return model

    return write
