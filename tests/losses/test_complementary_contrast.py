"""Contrastive complementary labels."""

import pytest
import torch
from naive_complementary import naive_complementary
from naive_contrast import rows

from nnunet_dvcl.losses import complementary_contrast, least_likely_classes


def _given(c, n=12, seed=0):
    classes = torch.arange(n) % (c + 2) - 2
    complementary = least_likely_classes(rows(n, c, seed=seed + 2).softmax(1))
    return rows(n, 3, seed=seed), rows(n, 3, seed=seed + 1), classes.clamp(min=-1), complementary, torch.arange(n) != 5


@pytest.mark.parametrize("temperature", [1.0, 0.07])
@pytest.mark.parametrize("c", [2, 3, 5, 14])
def test_equals_the_loops(c, temperature):
    given = _given(c, n=20)
    loss = complementary_contrast(*given, temperature)
    expected = naive_complementary(*given[:2], *(x.tolist() for x in given[2:]), temperature)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("c", "number"), [(2, 1), (3, 2), (4, 2), (5, 3), (14, 9)])
def test_complementary_labels_are_the_least_likely_and_some(c, number):
    p = rows(30, c).softmax(1)
    found = least_likely_classes(p)
    assert (found.sum(1) == number).all()
    for q, chosen in zip(p.tolist(), found.tolist(), strict=True):
        least = sorted(range(c), key=lambda k: q[k])[:number]
        assert [k in least for k in range(c)] == chosen


@pytest.mark.parametrize(("share", "number"), [(0.0, 1), (1.0, 4)])
def test_never_none_and_never_all(share, number):
    assert (least_likely_classes(rows(9, 5).softmax(1), share).sum(1) == number).all()


def test_gradient_flows_to_the_rows_alone():
    r, other, classes, complementary, part = _given(4, n=24)
    r.requires_grad_(), other.requires_grad_()
    complementary_contrast(r, other, classes, complementary, part).backward()
    assert other.grad is None
    assert torch.equal(r.grad.abs().sum(1) > 0, part)


def test_an_unconfident_voxel_without_a_foe_is_at_rest():
    """Its own other view is all that it is compared with."""
    r, other = rows(3, 4).requires_grad_(), rows(3, 4, seed=1)
    classes, no = torch.full((3,), -1), torch.zeros(3, 5, dtype=torch.bool)
    loss = complementary_contrast(r, other, classes, no, torch.ones(3, dtype=torch.bool))
    loss.backward()
    assert loss.abs() < 1e-12
    assert r.grad.abs().max() < 1e-12


def test_complementary_labels_push():
    r = torch.tensor([[1.0, 0.2], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    classes, every = torch.tensor([-1, 1]), torch.ones(2, dtype=torch.bool)
    complementary = torch.tensor([[False, True], [False, False]])
    complementary_contrast(r, r.detach(), classes, complementary, every, 1.0).backward()
    moved = r.detach() - 0.1 * r.grad
    before, after = (torch.cosine_similarity(x[0], r.detach()[1], dim=0) for x in (r.detach(), moved))
    assert after < before


@pytest.mark.parametrize("n", [0, 4])
def test_nobody_is_a_zero_with_a_graph(n):
    r = rows(n, 3).requires_grad_()
    nobody = torch.zeros(n, dtype=torch.bool)
    loss = complementary_contrast(
        r, rows(n, 3), torch.zeros(n, dtype=torch.int64), nobody[:, None].repeat(1, 2), nobody
    )
    loss.backward()
    assert loss == 0
    assert not r.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_change_nothing(dtype):
    r, other, *rest = _given(4)
    r, other = (1000 * r).to(dtype), other.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = complementary_contrast(r, other, *rest)
    assert inside.dtype == torch.float32
    wide = complementary_contrast(r.double(), other.double(), *rest)
    torch.testing.assert_close(inside.double(), wide, rtol=1e-4, atol=1e-5)
