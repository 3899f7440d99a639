"""Drawing voxels."""

import itertools
import math
from collections import Counter

import pytest
import torch

from nnunet_dvcl.voxels.draws import draw_per_class, draw_voxels

# 0.1 % and 99.9 % quantiles of chi-square with 19 degrees of freedom: the seeds are fixed, so these never flake.
CHI2_19 = (5.41, 43.82)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_every_subset_equally_likely(draws: list[list[int]], subsets: list[tuple[int, ...]]) -> None:
    assert len(subsets) == 20
    counts = Counter(tuple(sorted(draw)) for draw in draws)
    assert set(counts) <= set(subsets)
    expected = len(draws) / len(subsets)
    chi2 = sum((counts[s] - expected) ** 2 / expected for s in subsets)
    assert CHI2_19[0] < chi2 < CHI2_19[1]


# --------------------------------------------------------------------------- draw_per_class


@pytest.mark.parametrize("seed", range(20))
def test_per_class_draws_are_exact(seed):
    g = seeded(seed)
    n, num_classes, per_class = (int(torch.randint(1, high, (), generator=g)) for high in (80, 7, 15))
    classes = torch.randint(-1, num_classes, (n,), generator=g)
    index, mask = draw_per_class(classes, num_classes, per_class, g)
    assert index.shape == mask.shape == (num_classes, per_class)
    assert index.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert ((index >= 0) & (index < n)).all()
    for c in range(num_classes):
        drawn = index[c][mask[c]].tolist()
        assert len(drawn) == len(set(drawn)) == min(int((classes == c).sum()), per_class)
        assert all(classes[i] == c for i in drawn)


@pytest.mark.parametrize("classes", [torch.zeros(0, dtype=torch.int64), torch.full((9,), -1)])
def test_nothing_to_draw_per_class(classes):
    index, mask = draw_per_class(classes, 3, 4)
    assert index.shape == mask.shape == (3, 4)
    assert not mask.any()


def test_per_class_draws_are_uniform_over_subsets():
    """Three of the six voxels of each class: 20 subsets, equally likely; the classes alternate."""
    classes = torch.tensor([0, 1] * 6 + [-1] * 4)
    g = seeded()
    draws = [draw_per_class(classes, 2, 3, g)[0] for _ in range(4000)]
    for c in (0, 1):
        subsets = list(itertools.combinations(range(c, 12, 2), 3))
        assert_every_subset_equally_likely([draw[c].tolist() for draw in draws], subsets)


def test_a_class_of_one_voxel_beside_a_million_is_drawn():
    classes = torch.zeros(1_000_001, dtype=torch.int64)
    classes[723_456] = 1
    index, mask = draw_per_class(classes, 2, 256, seeded())
    assert index[1][mask[1]].tolist() == [723_456]
    assert mask[0].all()
    assert index[0].unique().numel() == 256
    assert 723_456 not in index[0]
    spread = index[0].double() / 1_000_000
    assert abs(spread.mean() - 0.5) < 4 * math.sqrt(1 / 12 / 256)
    assert abs(spread.std() - math.sqrt(1 / 12)) < 0.04


def test_draws_follow_the_generator_and_leave_the_global_one_alone():
    classes, mask = torch.randint(0, 3, (200,)), torch.rand(20, 10) < 0.5
    before = torch.get_rng_state()
    first, again, other = (draw_per_class(classes, 3, 10, seeded(s))[0] for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    first, again, other = (draw_voxels(mask, 10, seeded(s))[0] for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


# --------------------------------------------------------------------------- draw_voxels


@pytest.mark.parametrize("count", [0, 1, 5, 1000])
@pytest.mark.parametrize("shape", [(0,), (50,), (2, 5, 6), (2, 3, 4, 5)])
def test_drawn_voxels_are_distinct_and_of_the_mask(shape, count):
    mask = torch.rand(shape, generator=seeded()) < 0.4
    index, drawn = draw_voxels(mask, count, seeded())
    assert index.dtype == torch.int64
    assert index.shape == drawn.shape == (count,)
    assert (index[~drawn] == 0).all()
    index = index[drawn]
    assert len(index) == min(count, int(mask.sum()))
    assert index.unique().numel() == index.numel()
    assert mask.flatten()[index].all()


def test_drawn_voxels_of_a_mask_that_is_not_contiguous():
    mask = torch.zeros(3, 4, dtype=torch.bool).t()
    mask[1, 2] = True
    index, drawn = draw_voxels(mask, 5)
    assert index[drawn].tolist() == [1 * 3 + 2]


def test_an_empty_mask_draws_nothing():
    assert not draw_voxels(torch.zeros(2, 3, 4, dtype=torch.bool), 5)[1].any()


def test_drawn_voxels_are_uniform_over_subsets():
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    members = [0, 1, 2, 11, 12, 23]
    mask.view(-1)[members] = True
    g = seeded()
    draws = [draw_voxels(mask, 3, g)[0].tolist() for _ in range(4000)]
    assert_every_subset_equally_likely(draws, list(itertools.combinations(members, 3)))
