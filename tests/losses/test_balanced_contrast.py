"""Balanced contrast: centers, temperatures of classes, and as many negatives whatever their number."""

import math

import pytest
import torch
from naive_contrast import cos, rows

from nnunet_dvcl.losses import balanced_contrast, class_temperatures, reliable_negatives


def _naive(r, classes, anchors, centers, has_center, negative_of, temperatures, temperature, number):
    losses = []
    for i in range(len(r)):
        c = classes[i]
        negatives = [j for j in range(len(r)) if negative_of[j][c]]
        if anchors[i] and has_center[c] and negatives:
            pull = torch.exp(cos(r[i], centers[c]) / temperatures[c])
            push = sum(torch.exp(cos(r[i], r[j]) / temperature) for j in negatives) / len(negatives)
            losses.append(-torch.log(pull / (pull + number * push)))
    return torch.stack(losses).mean() if losses else torch.zeros(())


def _given(c, n=18):
    truth = torch.arange(n) % (2 * c) - c
    p = rows(n, c, seed=2).softmax(1)
    classes = truth.where(truth >= 0, p.argmax(1))
    temperatures = class_temperatures(torch.arange(1, c + 1), 0.3).double()
    has_center = torch.arange(c) != (1 if c > 2 else 9)
    return rows(n, 3), classes, torch.arange(n) != 5, rows(c, 3, seed=1), has_center, reliable_negatives(
        p, truth.clamp(min=-1)
    ), temperatures  # fmt: skip


@pytest.mark.parametrize("number", [1, 64])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("c", [2, 3, 14])
def test_equals_the_loops(c, temperature, number):
    given = _given(c)
    torch.testing.assert_close(
        balanced_contrast(*given, temperature, number), _naive(*given, temperature=temperature, number=number)
    )


@pytest.mark.parametrize(("c", "likely"), [(2, 1), (3, 1), (5, 2), (10, 3), (14, 4)])
def test_unlabeled_voxels_are_negatives_of_what_is_unlikely_and_of_some(c, likely):
    p = rows(30, c).softmax(1)
    found = reliable_negatives(p, torch.full((30,), -1))
    assert (found.sum(1) == c - likely).all()
    for q, negative in zip(p.tolist(), found.tolist(), strict=True):
        first = sorted(range(c), key=lambda k: -q[k])[:likely]
        assert [k not in first for k in range(c)] == negative


@pytest.mark.parametrize("c", [2, 3, 14])
def test_labeled_voxels_are_negatives_of_all_other_classes(c):
    truth = torch.arange(30) % c
    found = reliable_negatives(rows(30, c).softmax(1), truth)
    assert found.tolist() == [[k != y for k in range(c)] for y in truth.tolist()]


def test_frequent_classes_are_colder_at_first():
    counts = torch.tensor([900.0, 100.0, 0.0])
    for t in (0.0, 0.5, 1.0):
        expected = [0.1 - (1 - t) ** 2 * 0.0005 * math.sqrt(n / 900) for n in (900, 100, 0)]
        assert class_temperatures(counts, t).tolist() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(class_temperatures(counts / 1000, 0.2), class_temperatures(counts, 0.2))
    assert class_temperatures(torch.zeros(3), 0.0).tolist() == pytest.approx([0.1] * 3)


def test_gradient_flows_to_the_anchors_alone():
    given = list(_given(3))
    given[0].requires_grad_(), given[3].requires_grad_()
    balanced_contrast(*given).backward()
    assert given[3].grad is None
    active = given[2] & given[4][given[1]]
    assert torch.equal(given[0].grad.abs().sum(1) > 0, active)


@pytest.mark.parametrize("missing", [2, 4, 5])
def test_nothing_to_contrast_is_a_zero_with_a_graph(missing):
    """No anchor, no center, or no negative: not nan."""
    given = list(_given(3))
    given[0].requires_grad_()
    given[missing] = torch.zeros_like(given[missing])
    loss = balanced_contrast(*given)
    loss.backward()
    assert loss == 0
    assert torch.equal(given[0].grad, torch.zeros_like(given[0]))


def test_a_class_without_a_center_adds_nothing():
    """Where a mean of nothing would be nan."""
    given = list(_given(3))
    given[3][1] = torch.nan
    before = balanced_contrast(*given)
    assert before.isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_change_nothing(dtype):
    r, classes, anchors, centers, *rest = _given(3)
    r, centers = (1000 * r).to(dtype), centers.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = balanced_contrast(r, classes, anchors, centers, *rest)
    assert inside.dtype == torch.float32
    wide = balanced_contrast(r.double(), classes, anchors, centers.double(), *rest)
    torch.testing.assert_close(inside.double(), wide, rtol=1e-4, atol=1e-5)
