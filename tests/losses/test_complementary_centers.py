"""Contrast with the centers of complementary labels."""

import math

import pytest
import torch
from naive_contrast import cos, rows

from nnunet_dvcl.losses import complementary_center_contrast


def _complementary(p, likely):
    """All but the `likely` most probable classes, at least the least probable one."""
    by_probability = sorted(range(len(p)), key=lambda c: p[c])
    return by_probability[: max(len(p) - likely, 1)] if len(p) > 1 else []


def _naive(features, p, centers, has_center, temperature, likely):
    losses = []
    for r, q in zip(features, p.tolist(), strict=True):
        pushing = [c for c in _complementary(q, likely) if has_center[c]]
        if pushing:
            losses.append(torch.log(1 + sum(torch.exp((cos(r, centers[c]) - 1) / temperature) for c in pushing)))
    return torch.stack(losses).mean() if losses else torch.zeros(())


@pytest.mark.parametrize("likely", [1, 3])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("c", [2, 3, 4, 7])
def test_equals_the_loops(c, temperature, likely):
    features, p, centers = rows(9, 3), rows(9, c, seed=1).softmax(-1), rows(c, 3, seed=2)
    has_center = torch.arange(c) != 1
    loss = complementary_center_contrast(features, p, centers, has_center, temperature, likely)
    torch.testing.assert_close(loss, _naive(features, p, centers, has_center, temperature, likely))


@pytest.mark.parametrize(("c", "expected"), [(2, [1]), (3, [2]), (4, [3]), (6, [3, 4, 5])])
def test_few_classes_leave_the_least_likely_one(c, expected):
    """Which centers matter to a voxel whose classes fall in probability."""
    p = torch.linspace(2, 0, c, dtype=torch.float64).softmax(0)[None]
    every, features, centers = torch.ones(c, dtype=torch.bool), rows(1, 3), rows(c, 3, seed=2)
    loss = complementary_center_contrast(features, p, centers, every)
    matter = []
    for k in range(c):
        other = centers.clone()
        other[k] = -other[k]
        if not torch.equal(complementary_center_contrast(features, p, other, every), loss):
            matter.append(k)
    assert matter == expected


def test_gradient_flows_to_the_features_alone_and_pushes():
    features, p, centers = (x.requires_grad_() for x in (rows(9, 3), rows(9, 4, seed=1), rows(4, 3, seed=2)))
    complementary_center_contrast(features, p, centers, torch.ones(4, dtype=torch.bool)).backward()
    assert p.grad is centers.grad is None
    least = centers.detach()[p.detach().argmin(1)]
    before = torch.cosine_similarity(features.detach(), least)
    assert (torch.cosine_similarity(features.detach() - features.grad, least) < before).all()


@pytest.mark.parametrize(("q", "c", "filled"), [(0, 4, True), (5, 4, False), (5, 1, True)])
def test_nothing_to_push_from_is_a_zero_with_a_graph(q, c, filled):
    features = rows(q, 3).requires_grad_()
    loss = complementary_center_contrast(features, rows(q, c), torch.zeros(c, 3), torch.full((c,), filled))
    loss.backward()
    assert loss == 0
    assert features.grad.abs().sum() == 0


def test_is_bounded():
    """From log 1 to log(1 + the number of complementary labels)."""
    features, centers = rows(1, 3), rows(1, 3).expand(7, 3)
    loss = complementary_center_contrast(features, rows(1, 7), centers, torch.ones(7, dtype=torch.bool), 0.01)
    assert loss.item() == pytest.approx(math.log(1 + 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_change_nothing(dtype):
    features, p, centers = (1000 * rows(6, 3)).to(dtype), rows(6, 5).to(dtype), rows(5, 3, seed=2).to(dtype)
    every = torch.ones(5, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = complementary_center_contrast(features, p, centers, every)
    assert inside.dtype == torch.float32
    wide = complementary_center_contrast(features.double(), p.double(), centers.double(), every)
    torch.testing.assert_close(inside.double(), wide, rtol=1e-5, atol=1e-6)
