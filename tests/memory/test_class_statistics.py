"""Shares and confidence of classes over the steps."""

import pytest
import torch

from nnunet_dvcl.memory import ClassConfidence, ClassShares


def test_shares_are_averaged_over_the_steps():
    memory = ClassShares(3, 2)
    first, second = torch.tensor([[8, 1], [2, 1], [0, 2]]), torch.tensor([[5, 0], [0, 0], [5, 0]])
    memory.update(first, 0.0)
    torch.testing.assert_close(memory.shares, first / first.sum(0))
    memory.update(second, 0.9)
    torch.testing.assert_close(memory.shares[:, 0], torch.tensor([0.77, 0.18, 0.05]))
    assert torch.equal(memory.shares[:, 1], first[:, 1] / 4), "no voxel decided there"
    memory.update(torch.zeros(3, 2), 0.0)
    torch.testing.assert_close(memory.shares.sum(0), torch.ones(2))


def test_confidence_is_averaged_over_the_steps_that_had_the_class():
    memory = ClassConfidence(3, 1, decay=0.75)
    memory.update(torch.tensor([[9.0], [0.0], [1.0]]), torch.tensor([[10], [0], [4]]))
    assert memory.confidence[:, 0].tolist() == pytest.approx([0.9, 0.0, 0.25])
    assert memory.seen[:, 0].tolist() == [True, False, True]
    memory.update(torch.tensor([[1.0], [2.0], [0.0]]), torch.tensor([[10], [4], [0]]))
    assert memory.confidence[:, 0].tolist() == pytest.approx([0.75 * 0.9 + 0.25 * 0.1, 0.5, 0.25])
    assert memory.seen.all()
    before = memory.confidence.clone()
    memory.update(torch.full((3, 1), torch.nan), torch.full((3, 1), 5))
    assert torch.equal(memory.confidence, before)


def test_rates_are_highest_for_the_class_that_is_least_certain():
    memory = ClassConfidence(4, 1, decay=0.9)
    assert (memory.rates(0.5) == 1).all(), "nothing is known yet"
    memory.update(torch.tensor([[0.99], [0.6], [0.36], [0.0]]), torch.tensor([[1], [1], [1], [0]]))
    expected = [(0.01 / 0.64) ** 0.5, (0.4 / 0.64) ** 0.5, 1.0, 1.0]
    assert memory.rates(0.5)[:, 0].tolist() == pytest.approx(expected, rel=1e-4)
    assert (memory.rates(0.0) == 1).all()
    memory.update(torch.ones(4, 1), torch.ones(4, 1))
    assert memory.rates(0.5).isfinite().all()
