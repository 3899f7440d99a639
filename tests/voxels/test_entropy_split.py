"""Entropy split (Eq. 5-6)."""

import math

import pytest
import torch
from naive_pseudo_labels import naive_split

from nnunet_dvcl.voxels.entropy_split import split_by_entropy


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0, -0.5])
@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 3, 4, 5)])
def test_split_equals_the_loops_of_equations_5_and_6(shape, alpha):
    entropy = torch.rand(shape, generator=seeded(), dtype=torch.float64) ** 3
    valid = torch.rand(shape, generator=seeded(1)) < 0.7
    for mask in (None, valid):
        use = torch.ones_like(valid) if mask is None else mask
        reliable, unreliable, threshold = split_by_entropy(entropy, alpha, mask)
        r, u, t = naive_split(entropy.flatten().tolist(), use.flatten().tolist(), alpha)
        assert float(threshold) == pytest.approx(t, rel=1e-10 if threshold.dtype == torch.float64 else 1e-6)
        assert reliable.flatten().tolist() == r
        assert unreliable.flatten().tolist() == u
        assert reliable.shape == unreliable.shape == shape


def test_the_threshold_adds_half_a_population_standard_deviation():
    reliable, unreliable, threshold = split_by_entropy(torch.tensor([[0.0, 0.0, 0.0, 4.0]]))
    assert float(threshold) == pytest.approx(1 + 0.5 * math.sqrt(3))
    assert unreliable.tolist() == [[False, False, False, True]]
    assert reliable.tolist() == [[True, True, True, False]]


def test_a_tie_is_reliable():
    reliable, unreliable, threshold = split_by_entropy(torch.tensor([[0.0, 1.0]]), alpha=1.0)
    assert float(threshold) == 1
    assert reliable.all()
    assert not unreliable.any()


@pytest.mark.parametrize("value", [0.0, 0.1, math.log(3), math.log(14)])
@pytest.mark.parametrize("n", [3, 1000, 4097])
def test_equal_entropy_everywhere_is_reliable_whatever_the_rounding(value, n):
    reliable, unreliable, _ = split_by_entropy(torch.full((1, n), value))
    assert reliable.all()
    assert not unreliable.any()


def test_voxels_outside_the_image_move_no_threshold_and_are_in_neither_mask():
    entropy, valid = torch.rand(2, 8, 8, generator=seeded()), torch.ones(2, 8, 8, dtype=torch.bool)
    expected = split_by_entropy(entropy)
    padded = torch.cat([entropy, torch.full((2, 8, 4), 1e4)], -1)
    reliable, unreliable, threshold = split_by_entropy(padded, valid=torch.cat([valid, ~valid[..., :4]], -1))
    torch.testing.assert_close(threshold, expected[2])
    assert torch.equal(reliable[..., :8], expected[0])
    assert torch.equal(unreliable[..., :8], expected[1])
    assert not (reliable | unreliable)[..., 8:].any()


def test_no_valid_voxel_leaves_both_masks_empty():
    entropy = torch.rand(2, 4)
    reliable, unreliable, threshold = split_by_entropy(entropy, valid=torch.zeros(2, 4, dtype=torch.bool))
    assert not reliable.any()
    assert not unreliable.any()
    assert math.isfinite(threshold)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_split_of_a_large_half_precision_volume_stays_finite(dtype):
    """200,000 voxels of about 1: neither their count nor their sum fits float16."""
    entropy = (0.5 + torch.rand(1, 200_000, generator=seeded())).to(dtype)
    *_, threshold = split_by_entropy(entropy)
    expected = entropy.double().mean() + 0.5 * entropy.double().std()
    assert float(threshold) == pytest.approx(expected.item(), rel=1e-2)
