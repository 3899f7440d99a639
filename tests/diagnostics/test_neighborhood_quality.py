"""Figure 6 counted by loops."""

import math

import pytest
import torch

from nnunet_dvcl.diagnostics import neighborhood_quality
from nnunet_dvcl.losses import Neighborhoods, find_neighborhoods


def naive_quality(found: Neighborhoods, labels: list[int], correct: list[bool]) -> dict[str, float]:
    def share(values: list[bool]) -> float:
        return sum(values) / len(values) if values else math.nan

    voxels = range(len(labels))
    pairs = [
        (m, n, bool(r)) for m in voxels for n, r in zip(found.neighbors[m].tolist(), found.relevant[m], strict=True)
    ]
    outlier = found.outlier.tolist()
    return {
        "outsiders_differ": share([all(labels[k] != labels[m] for k in found.outsiders[m].tolist()) for m in voxels]),
        "neighbors_same": share([all(labels[n] == labels[m] for n in found.neighbors[m].tolist()) for m in voxels]),
        "neighbors_same_correct": share(
            [all(labels[n] == labels[m] and correct[n] for n in found.neighbors[m].tolist()) for m in voxels]
        ),
        "relevant_same": share([labels[n] == labels[m] for m, n, relevant in pairs if relevant]),
        "ordinary_same": share([labels[n] == labels[m] for m, n, relevant in pairs if not relevant]),
        "outlier_neighbors_same": share([labels[n] == labels[m] for m, n, _ in pairs if outlier[m]]),
        "outliers_wrong": share([not correct[m] for m in voxels if outlier[m]]),
        "unreliable_wrong": share([not c for c in correct]),
    }


@pytest.mark.parametrize("seed", range(4))
def test_it_counts_what_figure_6_counts(seed):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (60,), generator=g)
    features = torch.eye(3)[labels] + 0.5 * torch.randn(60, 3, generator=g)
    features[:3] = -torch.rand(3, 3, generator=g)  # some far from all others
    correct = torch.rand(60, generator=g) < 0.7
    found = find_neighborhoods(features, torch.arange(60), num_neighbors=3, num_outsiders=2, outlier_neighbors=4)
    assert found.outlier.any()
    quality = neighborhood_quality(found, labels, correct)
    expected = naive_quality(found, labels.tolist(), correct.tolist())
    assert {name: share.item() for name, share in quality.items()} == pytest.approx(expected)


def test_perfect_clusters():
    labels = torch.arange(12) % 2
    features = torch.tensor([[1.0, 0.1], [-1.0, 0.1]])[labels] + 0.01 * torch.randn(12, 2)
    found = find_neighborhoods(features, torch.arange(12), 5, 5, 11)
    quality = neighborhood_quality(found, labels, torch.ones(12, dtype=torch.bool))
    for name in ("outsiders_differ", "neighbors_same", "neighbors_same_correct", "relevant_same"):
        assert quality[name] == 1
    assert quality["unreliable_wrong"] == 0
    assert quality["outliers_wrong"].isnan(), "there is no outlier"


@pytest.mark.parametrize("number", [0, 1])
def test_nothing_to_compare_is_nan(number):
    features, labels = torch.randn(number, 4), torch.zeros(number, dtype=torch.long)
    found = find_neighborhoods(features, torch.arange(number), 5, 5, 50)
    quality = neighborhood_quality(found, labels, labels == 0)
    assert all(quality[name].isnan() for name in ("outsiders_differ", "neighbors_same", "neighbors_same_correct"))
    assert quality["relevant_same"].isnan()
