"""SimCLR's NT-Xent."""

import pytest
import torch
from naive_contrast import pull, rows

from nnunet_dvcl.losses import sim_clr


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("q", [2, 5])
def test_equals_the_loops(q, temperature):
    a, b = rows(q, 3), rows(q, 3, seed=1)
    every, expected = [*a, *b], []
    for i in range(2 * q):
        partner = (i + q) % (2 * q)
        others = [every[k] for k in range(2 * q) if k not in (i, partner)]
        expected.append(pull(every[i], every[partner], others, temperature))
    torch.testing.assert_close(sim_clr(a, b, temperature), torch.stack(expected).mean())


def test_gradient_flows_to_both_views():
    a, b = rows(4, 3).requires_grad_(), rows(4, 3, seed=1).requires_grad_()
    sim_clr(a, b).backward()
    assert a.grad.abs().sum(1).gt(0).all()
    assert b.grad.abs().sum(1).gt(0).all()


@pytest.mark.parametrize("q", [0, 1])
def test_no_negative_is_a_zero_with_a_graph(q):
    a = rows(q, 3).requires_grad_()
    loss = sim_clr(a, rows(q, 3, seed=1))
    loss.backward()
    assert loss == 0
    assert a.grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_change_nothing(dtype):
    a, b = (1000 * rows(6, 3)).to(dtype), rows(6, 3, seed=1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sim_clr(a, b)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside.double(), sim_clr(a.double(), b.double()), rtol=1e-5, atol=1e-6)
