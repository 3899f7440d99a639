"""Learning from pseudo-labels of regions."""

import math

import pytest
import torch
from naive_pseudo_labels import random_logits

from nnunet_dvcl.losses import pseudo_label_cross_entropy


def supervision(a, b, valid):
    return sum(pseudo_label_cross_entropy(student, teacher > 0, valid) for student, teacher in ((a, b), (b, a)))


def naive(a, b, valid) -> float:
    """BCE(A, B > 1/2) + BCE(B, A > 1/2), the mean over regions and valid voxels."""
    regions = a.shape[1]
    rows_a, rows_b = (x.movedim(1, -1).reshape(-1, regions).tolist() for x in (a, b))
    total, count = 0.0, 0
    for row_a, row_b, is_valid in zip(rows_a, rows_b, valid.reshape(-1).tolist(), strict=True):
        if is_valid:
            for student, teacher in ((row_a, row_b), (row_b, row_a)):
                for x, y in zip(student, teacher, strict=True):
                    total -= math.log(1 / (1 + math.exp(-x if y > 0 else x))) / regions
            count += 1
    return total / count


@pytest.mark.parametrize("regions", [1, 3])
@pytest.mark.parametrize("space", [(4, 3), (2, 3, 4)])
def test_equals_the_loops(space, regions):
    a, b, valid = random_logits(space, regions)
    assert supervision(a, b, valid).item() == pytest.approx(naive(a, b, valid), rel=1e-10)
    torch.testing.assert_close(supervision(b, a, valid), supervision(a, b, valid))


def test_is_blind_to_voxels_that_are_not_valid():
    a, b, valid = random_logits((4, 4))
    changed = [torch.where(~valid[:, None], 1e4 * torch.randn_like(x), x) for x in (a, b)]
    torch.testing.assert_close(supervision(*changed, valid), supervision(a, b, valid))


def test_gradient_reaches_both_networks_as_students():
    a, b, valid = random_logits((4, 4))
    supervision(a, b, valid).backward()
    for student, teacher in ((a, b), (b, a)):
        target = (teacher.detach() > 0).double()
        expected = (student.detach().sigmoid() - target) * valid[:, None] / valid.sum() / a.shape[1]
        torch.testing.assert_close(student.grad, expected, rtol=1e-6, atol=1e-8)


def test_no_valid_voxel_is_a_zero_with_a_graph():
    a, b, valid = random_logits((4, 4))
    loss = supervision(a, b, torch.zeros_like(valid))
    loss.backward()
    assert loss == 0
    assert torch.equal(a.grad, torch.zeros_like(a))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_is_computed_in_float32(dtype):
    a, b, valid = (x.detach() for x in random_logits((8, 8)))
    a, b = a.to(dtype), b.to(dtype)
    loss = supervision(a, b, valid)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, supervision(a.float(), b.float(), valid), rtol=1e-6, atol=0)
