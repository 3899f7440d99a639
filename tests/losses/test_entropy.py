"""Voxel entropy, Eq. 4."""

import math

import pytest
import torch
from naive_pseudo_labels import naive_entropy

from nnunet_dvcl.losses import voxel_entropy


@pytest.mark.parametrize("space", [(5,), (4, 3), (2, 3, 4)])
def test_equals_the_sum_of_equation_4(space):
    torch.manual_seed(0)
    p = torch.randn(2, 6, *space, dtype=torch.float64).mul(3).softmax(1)
    entropy = voxel_entropy(p)
    assert entropy.shape == (2, *space)
    rows = p.movedim(1, -1).reshape(-1, 6).tolist()
    expected = torch.tensor([naive_entropy(row) for row in rows], dtype=torch.float64).reshape(2, *space)
    exact = entropy.dtype == torch.float64
    torch.testing.assert_close(entropy.double(), expected, rtol=1e-10 if exact else 1e-5, atol=1e-12 if exact else 1e-6)


@pytest.mark.parametrize("classes", [1, 2, 14])
def test_is_zero_for_a_certain_voxel_and_log_c_for_a_uniform_one(classes):
    certain = torch.zeros(1, classes, 3)
    certain[:, -1] = 1
    assert torch.equal(voxel_entropy(certain), torch.zeros(1, 3))
    uniform = torch.full((1, classes, 3), 1 / classes)
    torch.testing.assert_close(voxel_entropy(uniform), torch.full((1, 3), math.log(classes)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_is_computed_in_float32(dtype):
    torch.manual_seed(0)
    p = torch.randn(2, 14, 4, 4).mul(4).softmax(1).to(dtype)
    entropy = voxel_entropy(p)
    assert entropy.dtype == torch.float32
    assert torch.isfinite(entropy).all()
    torch.testing.assert_close(entropy, voxel_entropy(p.float()))
