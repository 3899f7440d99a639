"""Learning from pseudo-labels, both halves of Eq. 2, and the ramp of its weight."""

import math

import pytest
import torch
from naive_pseudo_labels import naive_cps, random_logits

from nnunet_dvcl.losses import gaussian_rampup, pseudo_label_cross_entropy


def cross_pseudo_supervision(a, b, valid):
    """Eq. 2: each half with the other's argmax."""
    return sum(pseudo_label_cross_entropy(student, teacher.argmax(1), valid) for student, teacher in ((a, b), (b, a)))


@pytest.mark.parametrize("space", [(4, 3), (2, 3, 4)])
def test_equals_the_sum_of_equation_2(space):
    a, b, valid = random_logits(space)
    loss = cross_pseudo_supervision(a, b, valid)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(naive_cps(a, b, valid), rel=1e-10 if loss.dtype == torch.float64 else 1e-6)


def test_is_symmetric_and_blind_to_voxels_that_are_not_valid():
    a, b, valid = random_logits((4, 4))
    loss = cross_pseudo_supervision(a, b, valid)
    torch.testing.assert_close(cross_pseudo_supervision(b, a, valid), loss)
    outside = ~valid[:, None]
    changed = [torch.where(outside, torch.full_like(x, 1e4) * torch.randn_like(x), x) for x in (a, b)]
    torch.testing.assert_close(cross_pseudo_supervision(*changed, valid), loss)


def test_gradient_reaches_both_networks_as_students():
    a, b, valid = random_logits((4, 4))
    cross_pseudo_supervision(a, b, valid).backward()
    for student, teacher in ((a, b), (b, a)):
        label = torch.nn.functional.one_hot(teacher.detach().argmax(1), 5).movedim(-1, 1)
        expected = (student.detach().softmax(1) - label) * valid[:, None] / valid.sum()
        torch.testing.assert_close(student.grad, expected, rtol=1e-6, atol=1e-8)


def test_agreeing_and_certain_networks_cost_nothing():
    a = torch.zeros(1, 3, 4, 4)
    a[:, 1] = 100
    assert cross_pseudo_supervision(a, 2 * a, torch.ones(1, 4, 4, dtype=torch.bool)).item() == 0


def test_no_valid_voxel_is_a_zero_with_a_graph():
    a, b, valid = random_logits((4, 4), dtype=torch.float32)
    loss = cross_pseudo_supervision(a, b, torch.zeros_like(valid))
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(a.grad, torch.zeros_like(a))
    assert torch.equal(b.grad, torch.zeros_like(b))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_is_computed_in_float32(dtype):
    a, b, valid = (x.detach() for x in random_logits((8, 8)))
    a, b = a.to(dtype), b.to(dtype)
    loss = cross_pseudo_supervision(a, b, valid)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_pseudo_supervision(a.float(), b.float(), valid), rtol=1e-6, atol=0)


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_rampup_is_the_gaussian_of_progress_over_fraction(fraction):
    assert gaussian_rampup(0.0, fraction) == pytest.approx(math.exp(-5))
    assert gaussian_rampup(fraction / 2, fraction) == pytest.approx(math.exp(-5 / 4))
    assert gaussian_rampup(fraction, fraction) == 1
    assert gaussian_rampup(1.0, fraction) == 1
    steps = [gaussian_rampup(i / 100, fraction) for i in range(101)]
    assert steps == sorted(steps)


def test_rampup_defaults_to_the_whole_training_and_fraction_zero_is_no_ramp():
    assert gaussian_rampup(0.3) == pytest.approx(math.exp(-5 * 0.7**2))
    assert gaussian_rampup(0.0, 0.0) == 1
    assert gaussian_rampup(0.7, 0.0) == 1
