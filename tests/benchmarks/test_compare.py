"""The benchmarks' own arithmetic: turns, ratios, peaks."""

import pytest
import torch

from benchmarks import compare as module
from benchmarks.compare import CPU, compare, peak_bytes_of


def test_both_sides_take_turns_and_swap_their_order():
    order = []
    compare("x", ("a", lambda: order.append("a")), ("b", lambda: order.append("b")), repeats=4, warmup=1, memory=False)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab" + "ba"


def test_the_ratio_is_the_median_over_turns(monkeypatch):
    seconds = {"a": iter([1.0, 9.0, 3.0]), "b": iter([1.0, 3.0, 2.0])}
    monkeypatch.setattr(module, "seconds_of", lambda call, device: next(seconds[call()]))
    result = compare("x", ("a", lambda: "a"), ("b", lambda: "b"), repeats=3, warmup=0, memory=False)
    assert result.ratios == [1.0, 3.0, 1.5]
    assert result.ratio == 1.5
    assert result.spread == (1.25, 2.25)
    assert result.memory_ratio is None


@pytest.mark.parametrize("held_before", [0, 1000])
def test_the_peak_is_what_a_call_holds_at_once(held_before):
    before = torch.zeros(held_before)

    def call():
        one = torch.zeros(1000)
        del one
        two, three = torch.zeros(1500), torch.zeros(500)
        return two.numel() + three.numel() + before.numel()

    assert peak_bytes_of(call, CPU) == 4 * 2000


def test_seconds_are_those_that_were_computed():
    import time

    assert module.seconds_of(lambda: time.sleep(0.05), CPU) < 0.04
