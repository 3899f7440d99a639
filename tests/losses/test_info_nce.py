"""InfoNCE of features."""

import pytest
import torch
from naive_contrast import pull, rows

from nnunet_dvcl.losses import info_nce


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize(("k", "k_out"), [(5, 5), (1, 3), (4, 1)])
def test_equals_the_loops(k, k_out, temperature):
    q, n, o = rows(6, 3), rows(6, k, 3, seed=1), rows(6, k_out, 3, seed=2)
    expected = [pull(q[i], n[i, j], list(o[i]), temperature) for i in range(6) for j in range(k)]
    torch.testing.assert_close(info_nce(q, n, o, temperature), torch.stack(expected).mean())


def test_gradient_flows_to_the_queries_alone():
    q, n, o = (x.requires_grad_() for x in (rows(6, 3), rows(6, 2, 3, seed=1), rows(6, 4, 3, seed=2)))
    info_nce(q, n, o).backward()
    assert n.grad is None
    assert o.grad is None
    assert q.grad.abs().sum(1).gt(0).all()


def test_a_step_down_pulls_the_neighbors_and_pushes_the_outsiders():
    q, n, o = rows(6, 8).requires_grad_(), rows(6, 1, 8, seed=1), rows(6, 1, 8, seed=2)
    info_nce(q, n, o).backward()
    moved = q.detach() - 0.1 * q.grad

    def gap(x):
        return torch.cosine_similarity(x, n[:, 0]) - torch.cosine_similarity(x, o[:, 0])

    assert (gap(moved) > gap(q.detach())).all()


@pytest.mark.parametrize(("q", "k", "k_out"), [(0, 5, 5), (1, 0, 0)])
def test_nothing_to_pull_is_a_zero_with_a_graph(q, k, k_out):
    queries = rows(q, 3).requires_grad_()
    loss = info_nce(queries, rows(q, k, 3), rows(q, k_out, 3))
    loss.backward()
    assert loss == 0
    assert torch.equal(queries.grad, torch.zeros_like(queries))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_change_nothing(dtype):
    q, n, o = (1000 * rows(6, 3)).to(dtype), rows(6, 2, 3, seed=1).to(dtype), rows(6, 4, 3, seed=2).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce(q, n, o)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside.double(), info_nce(q.double(), n.double(), o.double()), rtol=1e-5, atol=1e-6)
