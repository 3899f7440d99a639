"""SNCLR and the positiveness of neighbors."""

import pytest
import torch
from naive_contrast import cos, pull, rows, softmax

from nnunet_dvcl.losses import positiveness, sn_clr


def _positiveness(q, n):
    return torch.tensor([softmax([cos(a, b) for b in near]) for a, near in zip(q, n, strict=True)], dtype=q.dtype)


def test_positiveness_equals_the_loops():
    q, n = rows(6, 3), rows(6, 4, 3, seed=1)
    torch.testing.assert_close(positiveness(q, n), _positiveness(q, n))


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("k", [1, 4])
def test_equals_the_loops(k, temperature):
    q, views, n = rows(5, 3), rows(5, 3, seed=1), rows(5, k, 3, seed=2)
    weights, expected = _positiveness(q, n), 0.0
    targets = {(i, j): views[i] if j == 0 else n[i, j - 1] for i in range(5) for j in range(k + 1)}
    for i in range(5):
        for j in range(k + 1):
            others = [target for at, target in targets.items() if at != (i, j)]
            expected += (1.0 if j == 0 else weights[i, j - 1]) * pull(q[i], targets[i, j], others, temperature) / 5
    torch.testing.assert_close(sn_clr(q, views, n, temperature), expected)


def test_gradient_flows_to_the_queries_alone_and_not_through_the_weights():
    q, views, n = (x.requires_grad_() for x in (rows(5, 3), rows(5, 3, seed=1), rows(5, 4, 3, seed=2)))
    assert not positiveness(q, n).requires_grad
    sn_clr(q, views, n).backward()
    assert views.grad is None
    assert n.grad is None
    assert q.grad.abs().sum(1).gt(0).all()


def test_no_query_is_a_zero_with_a_graph():
    q = rows(0, 3).requires_grad_()
    loss = sn_clr(q, rows(0, 3), rows(0, 5, 3))
    loss.backward()
    assert loss == 0


def test_without_neighbors_only_the_other_view_pulls():
    q, views = rows(4, 3), rows(4, 3, seed=1)
    expected = [pull(q[i], views[i], [views[k] for k in range(4) if k != i], 1.0) for i in range(4)]
    torch.testing.assert_close(sn_clr(q, views, rows(4, 0, 3)), torch.stack(expected).mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_change_nothing(dtype):
    q, views, n = (1000 * rows(6, 3)).to(dtype), rows(6, 3, seed=1).to(dtype), rows(6, 2, 3, seed=2).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sn_clr(q, views, n)
    assert inside.dtype == torch.float32
    wide = sn_clr(q.double(), views.double(), n.double())
    torch.testing.assert_close(inside.double(), wide, rtol=1e-5, atol=1e-6)
