"""NNCLR."""

import pytest
import torch
from naive_contrast import pull, rows

from nnunet_dvcl.losses import nn_clr


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("q", [2, 5])
def test_equals_the_loops(q, temperature):
    nearest, views = rows(q, 3), rows(q, 3, seed=1)
    expected = []
    for i in range(q):
        others = [k for k in range(q) if k != i]
        expected.append(pull(nearest[i], views[i], [views[k] for k in others], temperature))
        expected.append(pull(views[i], nearest[i], [nearest[k] for k in others], temperature))
    torch.testing.assert_close(nn_clr(nearest, views, temperature), torch.stack(expected).mean())


def test_gradient_flows_to_the_views_alone():
    nearest, views = rows(4, 3).requires_grad_(), rows(4, 3, seed=1).requires_grad_()
    nn_clr(nearest, views).backward()
    assert nearest.grad is None
    assert views.grad.abs().sum(1).gt(0).all()


@pytest.mark.parametrize("q", [0, 1])
def test_no_negative_is_a_zero_with_a_graph(q):
    views = rows(q, 3).requires_grad_()
    loss = nn_clr(rows(q, 3, seed=1), views)
    loss.backward()
    assert loss == 0
    assert views.grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_change_nothing(dtype):
    nearest, views = (1000 * rows(6, 3)).to(dtype), rows(6, 3, seed=1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nn_clr(nearest, views)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside.double(), nn_clr(nearest.double(), views.double()), rtol=1e-5, atol=1e-6)
