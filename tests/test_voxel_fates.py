"""docs/figures/voxel_fates.py: what it counts, and that it trains and draws."""

import csv
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_dvcl.data import preprocess_unlabeled

spec = importlib.util.spec_from_file_location("voxel_fates", Path(__file__).parents[1] / "docs/figures/voxel_fates.py")
voxel_fates = importlib.util.module_from_spec(spec)
spec.loader.exec_module(voxel_fates)


def make_trace(epochs=3, voxels=200, seed=0):
    rng = np.random.default_rng(seed)
    return voxel_fates.Trace(
        rng.random((epochs, voxels)) < 0.7, rng.random((epochs, voxels)) < 0.3, rng.random(voxels) < 0.4
    )


def test_the_distance_to_another_class():
    labels = torch.tensor([[[0, 0, 0, 1, 1]], [[2, 2, 2, 2, 2]]])
    distance = voxel_fates.distance_to_another_class(labels)
    assert distance[0, 0].tolist() == [3, 2, 1, 1, 2]
    assert distance[1].isinf().all()


@pytest.mark.parametrize("unreliable", [True, False])
def test_fates_follow_the_voxels_of_one_epoch(unreliable):
    trace = make_trace()
    followed = [v for v in range(200) if trace.unreliable[1, v] == unreliable]
    result = voxel_fates.fates(trace, 1, unreliable)
    for epoch in range(3):
        fate = [(bool(trace.unreliable[epoch, v]), bool(trace.correct[epoch, v])) for v in followed]
        expected = [fate.count(f) / len(fate) for f in ((False, True), (True, True), (True, False), (False, False))]
        np.testing.assert_allclose(result[epoch], expected)


def test_shares():
    trace = make_trace()
    found = voxel_fates.shares(trace)
    for epoch in range(3):
        voxels = [
            (bool(u), bool(c), bool(n))
            for u, c, n in zip(trace.unreliable[epoch], trace.correct[epoch], trace.near_border, strict=True)
        ]
        expected = {
            "unreliable voxels at a border": [n for u, _, n in voxels if u],
            "all voxels at a border": [n for _, _, n in voxels],
            "unreliable voxels that are wrong": [not c for u, c, _ in voxels if u],
            "reliable voxels that are wrong": [not c for u, c, _ in voxels if not u],
            "wrong voxels that are unreliable": [u for u, c, _ in voxels if not c],
        }
        assert {name: values[epoch] for name, values in found.items()} == pytest.approx(
            {name: sum(of) / len(of) for name, of in expected.items()}
        )


def test_it_trains_and_draws(tiny_dataset, tmp_path, monkeypatch):
    preprocess_unlabeled(tiny_dataset.name, "2d", num_processes=1)
    plans = tiny_dataset.plans
    schedule = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "seed": 0}
    plans["configurations"]["2d_tiny"]["ssl"] = schedule | {"num_queries": 16, "queue_capacity": 64}
    tiny_dataset.write_plans(plans)
    tiny_dataset.write_splits({"train": ["case_0", "case_1"], "val": ["case_5"]})
    monkeypatch.setattr(
        "sys.argv", ["voxel_fates.py", "-d", "901", "-c", "2d_tiny", "-f", "0", "-e", "1", "-o", str(tmp_path)]
    )
    voxel_fates.main()
    with open(tmp_path / "voxel-fates.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    fates = [float(row["value"]) for row in rows if row["share"].startswith("unreliable after") and row["epoch"] == "1"]
    assert len(fates) == 4
    assert math.isclose(sum(fates), 1, abs_tol=1e-3)
    assert fates[0] == fates[3] == 0, "in the epoch itself all of them are unreliable"
    assert {path.name for path in tmp_path.glob("voxel-fates.*")} == {
        f"voxel-fates.{kind}" for kind in ("png", "svg", "csv")
    }
