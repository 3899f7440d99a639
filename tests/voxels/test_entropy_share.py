"""The most uncertain share of voxels, against a sort."""

import math

import pytest
import torch

from nnunet_dvcl.voxels.entropy_share import STEPS, most_uncertain

HIGHEST = math.log(3)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 1.0])
def test_are_the_highest_entropies(share):
    entropy = HIGHEST * torch.rand(2, 40, 50, generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(entropy, dtype=torch.bool)
    valid[0, :7] = False
    chosen = most_uncertain(entropy, share, HIGHEST, valid)
    assert not (chosen & ~valid).any()
    number, wanted = int(chosen.sum()), share * int(valid.sum())
    assert wanted - 10 <= number <= wanted, "as many as share one step of the histogram are left out"
    if 0 < number < valid.sum():
        assert entropy[chosen].min() > entropy[valid & ~chosen].max() - HIGHEST / STEPS
        assert entropy[chosen].min() >= entropy[valid].sort().values[-number]


def test_padding_changes_nothing():
    entropy = HIGHEST * torch.rand(1, 100)
    valid = torch.arange(100)[None] < 60
    chosen = most_uncertain(entropy, 0.3, HIGHEST, valid)
    other = entropy.where(valid, HIGHEST)
    assert torch.equal(most_uncertain(other, 0.3, HIGHEST, valid), chosen)
    assert 15 <= chosen.sum() <= 18


@pytest.mark.parametrize("value", [0.0, HIGHEST, 1.0001 * HIGHEST])
def test_equal_entropies_are_all_chosen_or_none(value):
    entropy = torch.full((1, 50), value)
    valid = torch.ones_like(entropy, dtype=torch.bool)
    assert not most_uncertain(entropy, 0.99, HIGHEST, valid).any()
    assert most_uncertain(entropy, 1.0, HIGHEST, valid).all()


def test_nothing_valid_chooses_nothing():
    assert not most_uncertain(torch.rand(1, 9), 0.5, HIGHEST, torch.zeros(1, 9, dtype=torch.bool)).any()
