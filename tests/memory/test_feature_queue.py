"""FeatureQueue against collections.deque."""

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_dvcl.memory import FeatureQueue

batches = st.lists(st.integers(0, 13), max_size=12)


def numbered(start: int, n: int) -> dict[str, torch.Tensor]:
    """Rows that can be told apart: row i holds i in its features and -i in its probabilities."""
    number = torch.arange(start, start + n, dtype=torch.float32)[:, None]
    return {"features": number.expand(n, 3), "probabilities": -number.expand(n, 2)}


@settings(max_examples=150, deadline=None)
@given(capacity=st.integers(1, 9), sizes=batches)
def test_behaves_like_a_deque(capacity, sizes):
    queue, oracle, pushed = FeatureQueue(capacity, features=3, probabilities=2), deque(maxlen=capacity), 0
    assert len(queue) == 0
    for n in sizes:
        rows = numbered(pushed, n)
        slots = queue.push(**rows)
        oracle.extend(range(pushed, pushed + n))
        pushed += n
        held = queue.rows()
        assert len(queue) == len(oracle)
        assert held["features"].shape == (len(oracle), 3)
        assert held["probabilities"].shape == (len(oracle), 2)
        assert sorted(held["features"][:, 0].tolist()) == sorted(oracle)
        assert torch.equal(held["features"][:, 0], -held["probabilities"][:, 1])
        dropped = max(n - capacity, 0)
        assert slots.dtype == torch.int64
        assert slots.tolist()[:dropped] == [-1] * dropped
        assert (slots[dropped:] >= 0).all()
        for name in rows:
            assert torch.equal(held[name][slots[dropped:]], rows[name][dropped:])


@settings(max_examples=50, deadline=None)
@given(before=batches, after=batches, other=batches)
def test_state_dict_continues_identically(before, after, other):
    """Also when the loading queue had rows of its own: cursor and count are state, not attributes."""
    first, second = (FeatureQueue(7, features=3, probabilities=2) for _ in range(2))
    for queue, sizes, start in ((first, before, 0), (second, other, 1000)):
        for n in sizes:
            queue.push(**numbered(start, n))
            start += n
    second.load_state_dict(first.state_dict())
    start = 500
    for n in after:
        assert torch.equal(first.push(**numbered(start, n)), second.push(**numbered(start, n)))
        start += n
    assert len(first) == len(second)
    for name, rows in first.rows().items():
        assert torch.equal(rows, second.rows()[name])


def test_the_whole_state_is_in_saved_buffers():
    queue = FeatureQueue(7, features=3)
    assert isinstance(queue, torch.nn.Module)
    assert set(dict(queue.named_buffers())) == set(queue.state_dict())
    assert not list(queue.parameters())


def test_pushed_rows_are_detached_copies():
    queue = FeatureQueue(4, features=3)
    rows = torch.ones(2, 3, requires_grad=True)
    queue.push(features=rows * 1)
    assert not queue.rows()["features"].requires_grad
    rows.data.fill_(7)
    plain = torch.ones(1, 3)
    queue.push(features=plain)
    plain.fill_(7)
    assert (queue.rows()["features"] == 1).all()


def test_backward_through_held_rows_survives_a_later_push():
    queue = FeatureQueue(4, features=3)
    queue.push(features=torch.ones(4, 3))
    weight = torch.ones(3, requires_grad=True)
    loss = (queue.rows()["features"][torch.tensor([0, 1])] * weight).sum()
    queue.push(features=torch.zeros(4, 3))
    loss.backward()
    assert weight.grad.tolist() == [2, 2, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rows_of_any_float_are_held_in_float32(dtype):
    queue = FeatureQueue(4, features=3)
    queue.push(features=torch.full((2, 3), 0.5, dtype=dtype))
    held = queue.rows()["features"]
    assert held.dtype == torch.float32
    assert (held == 0.5).all()


@pytest.mark.parametrize(
    "rows",
    [
        {"features": torch.zeros(2, 3)},
        {"features": torch.zeros(2, 3), "probabilities": torch.zeros(1, 2)},
        {"features": torch.zeros(2, 3), "probabilities": torch.zeros(2, 2), "labels": torch.zeros(2, 1)},
    ],
    ids=["part missing", "lengths differ", "part too many"],
)
def test_a_push_that_does_not_fit_is_refused_and_changes_nothing(rows):
    queue = FeatureQueue(4, features=3, probabilities=2)
    queue.push(**numbered(0, 2))
    with pytest.raises(ValueError, match="part"):
        queue.push(**rows)
    assert len(queue) == 2
    assert queue.rows()["features"][:, 0].tolist() == [0, 1]


@pytest.mark.parametrize("part", ["features", "probabilities"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_not_stored(part, value):
    queue = FeatureQueue(4, features=3, probabilities=2)
    queue.push(**numbered(1, 4))
    rows = {name: values.clone() for name, values in numbered(5, 3).items()}
    rows[part][1, -1] = value
    assert queue.push(**rows).tolist() == [0, -1, 1]
    assert queue.rows()["features"][:, 0].tolist() == [5, 7, 3, 4]
    assert queue.rows()["probabilities"][:, 0].tolist() == [-5, -7, -3, -4]
    assert queue.push(**numbered(8, 1)).tolist() == [2]


def test_more_rows_than_fit_with_one_that_is_not_finite():
    queue = FeatureQueue(2, features=3, probabilities=2)
    rows = {part: values.clone() for part, values in numbered(1, 5).items()}
    rows["features"][3] = float("nan")
    assert queue.push(**rows).tolist() == [-1, -1, 0, -1, 1]
    assert queue.rows()["features"][:, 0].tolist() == [3, 5]


@settings(max_examples=100, deadline=None)
@given(capacity=st.integers(1, 9), draws=st.lists(st.lists(st.booleans(), max_size=13), max_size=8))
def test_rows_that_are_not_drawn_might_as_well_not_be_there(capacity, draws):
    queue, other, start = *(FeatureQueue(capacity, features=3, probabilities=2) for _ in range(2)), 0
    for drawn in map(lambda draw: torch.tensor(draw, dtype=torch.bool), draws):
        rows = numbered(start, len(drawn))
        start += len(drawn)
        slots = queue.push(drawn, **rows)
        assert (slots[~drawn] == -1).all()
        assert torch.equal(slots[drawn], other.push(**{part: values[drawn] for part, values in rows.items()}))
        assert all(map(torch.equal, queue.state_dict().values(), other.state_dict().values()))


def test_slots_are_the_rows_and_those_that_are_still_free():
    queue = FeatureQueue(4, features=3, probabilities=2)
    for start, expected in ((0, [True, True, True, False]), (3, [True] * 4)):
        queue.push(**numbered(start, 3))
        parts, filled = queue.slots()
        assert filled.tolist() == expected
        for part, values in queue.rows().items():
            assert torch.equal(parts[part][filled], values)
            assert len(parts[part]) == 4
