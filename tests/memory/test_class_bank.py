"""ClassBank against one collections.deque a class (Eq. 8)."""

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_dvcl.memory import ClassBank

NUM_CLASSES = 4
batches = st.lists(st.lists(st.integers(-1, NUM_CLASSES - 1), max_size=15), max_size=8)


def numbered(start: int, classes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    number = torch.arange(start, start + len(classes), dtype=torch.float32)[:, None]
    return torch.cat([number, number**2], 1), torch.tensor(classes, dtype=torch.int64)


def assert_holds(bank: ClassBank, oracle: list[deque]) -> None:
    centers, filled = bank.centers()
    assert centers.shape == (len(oracle), 2)
    assert torch.isfinite(centers).all()
    assert filled.dtype == torch.bool
    assert filled.tolist() == [len(rows) > 0 for rows in oracle]
    for center, rows in zip(centers, oracle, strict=True):
        if rows:
            expected = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
            assert center.tolist() == pytest.approx(expected, rel=1e-5)


@settings(max_examples=150, deadline=None)
@given(capacity=st.integers(1, 6), pushes=batches)
def test_centers_are_the_means_of_the_latest_rows_of_each_class(capacity, pushes):
    bank, oracle, pushed = ClassBank(NUM_CLASSES, capacity, 2), [deque(maxlen=capacity) for _ in range(NUM_CLASSES)], 0
    assert_holds(bank, oracle)
    for classes in pushes:
        features, labels = numbered(pushed, classes)
        bank.push(features, labels)
        for row, c in zip(features.tolist(), classes, strict=True):
            if c >= 0:
                oracle[c].append(row)
        pushed += len(classes)
        assert_holds(bank, oracle)


@settings(max_examples=50, deadline=None)
@given(before=batches, after=batches, other=batches)
def test_state_dict_continues_identically(before, after, other):
    first, second = (ClassBank(NUM_CLASSES, 5, 2) for _ in range(2))
    for bank, pushes, start in ((first, before, 0), (second, other, 1000)):
        for classes in pushes:
            bank.push(*numbered(start, classes))
            start += len(classes)
    second.load_state_dict(first.state_dict())
    for classes in after:
        for bank in (first, second):
            bank.push(*numbered(500, classes))
        for a, b in zip(first.centers(), second.centers(), strict=True):
            assert torch.equal(a, b)


def test_the_whole_state_is_in_saved_buffers():
    bank = ClassBank(3, 7, 2)
    assert isinstance(bank, torch.nn.Module)
    assert set(dict(bank.named_buffers())) == set(bank.state_dict())
    assert not list(bank.parameters())


def test_centers_carry_no_gradient():
    bank = ClassBank(2, 4, 3)
    bank.push(torch.ones(3, 3, requires_grad=True) * 2, torch.tensor([0, 1, 0]))
    centers, _ = bank.centers()
    assert not centers.requires_grad
    assert (centers == 2).all()


def test_centers_taken_before_a_push_do_not_change():
    bank = ClassBank(1, 2, 3)
    bank.push(torch.ones(2, 3), torch.tensor([0, 0]))
    before, filled = bank.centers()
    bank.push(torch.zeros(2, 3), torch.tensor([0, 0]))
    assert (before == 1).all()
    assert filled.all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_float_are_averaged_in_float32(dtype):
    """4096 rows of 100: their sum overflows float16."""
    bank = ClassBank(2, 4096, 3)
    bank.push(torch.full((4096, 3), 100, dtype=dtype), torch.zeros(4096, dtype=torch.int64))
    centers, filled = bank.centers()
    assert centers.dtype == torch.float32
    assert centers[0].tolist() == pytest.approx([100] * 3)
    assert filled.tolist() == [True, False]


def test_autocast_changes_no_center():
    bank = ClassBank(1, 4, 3)
    bank.push(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        centers, _ = bank.centers()
    torch.testing.assert_close(centers, bank.centers()[0])


@pytest.mark.parametrize("wrong", ["num_classes", "capacity", "dim"])
def test_impossible_sizes_are_named(wrong):
    with pytest.raises(ValueError, match=wrong):
        ClassBank(**{"num_classes": 3, "capacity": 4, "dim": 5} | {wrong: 0})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_is_ignored(value):
    bank, without = ClassBank(NUM_CLASSES, 3, 2), ClassBank(NUM_CLASSES, 3, 2)
    features, labels = numbered(1, [0, 1, 1, 0])
    bank.push(features, labels)
    without.push(features, labels)
    features, labels = numbered(5, [0, 1, 1])
    features[1, 0] = value
    bank.push(features, labels)
    without.push(features[[0, 2]], labels[[0, 2]])
    assert all(torch.equal(row, without.state_dict()[key]) for key, row in bank.state_dict().items())


def test_rows_are_those_of_each_class_and_which_are_filled():
    bank = ClassBank(3, 4, 2)
    features, classes = numbered(1, [0, 2, 2, 0, 0, 0, 0])
    bank.push(features, classes)
    rows, filled = bank.rows()
    assert rows.shape == (3, 4, 2)
    assert filled.sum(1).tolist() == [4, 0, 2]
    assert sorted(rows[0][filled[0]][:, 0].tolist()) == [4, 5, 6, 7]
    assert sorted(rows[2][filled[2]][:, 0].tolist()) == [2, 3]
    assert not rows.requires_grad
