"""High-quality contrast, Eq. 8-10."""

import math

import pytest
import torch
from naive_high_quality import make_rows, naive_hqcl
from torch import Tensor

from nnunet_dvcl.losses import HighQualityContrastiveLoss


def assert_equal_to_naive(loss: Tensor, expected: Tensor) -> None:
    exact = loss.dtype == torch.float64
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-10 if exact else 1e-5, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loops_of_equation_10(seed, temperature):
    rows = make_rows(seed=seed)
    loss = HighQualityContrastiveLoss(temperature=temperature)(**rows)
    assert_equal_to_naive(loss, naive_hqcl(**rows, temperature=temperature))


def test_gradient_equals_that_of_the_loops():
    rows, copies = make_rows(), make_rows()
    for r in (rows, copies):
        r["anchors"].requires_grad_()
        r["negatives"].requires_grad_()
    HighQualityContrastiveLoss()(**rows).backward()
    naive_hqcl(**copies).backward()
    for name in ("anchors", "negatives"):
        torch.testing.assert_close(rows[name].grad, copies[name].grad, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("missing", ["anchor_mask", "center_mask", "negative_mask"])
def test_a_class_that_lacks_a_part_adds_zero_and_still_counts_in_c(missing):
    rows = make_rows()
    whole = HighQualityContrastiveLoss()(**rows)
    rows[missing][2] = False
    loss = HighQualityContrastiveLoss()(**rows)
    assert_equal_to_naive(loss, naive_hqcl(**rows))
    alone = {k: v[2:3] for k, v in make_rows().items()}
    torch.testing.assert_close(whole - loss, HighQualityContrastiveLoss()(**alone) / 4, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [1, 7, 50])
def test_equal_rows_cost_log_of_one_plus_n(n):
    row = torch.tensor([1.0, -2.0, 0.5])
    loss = HighQualityContrastiveLoss()(
        row.expand(2, 4, 3), torch.ones(2, 4, dtype=torch.bool), row.expand(2, 3), torch.ones(2, dtype=torch.bool),
        row.expand(2, n, 3), torch.ones(2, n, dtype=torch.bool),
    )  # fmt: skip
    assert loss.item() == pytest.approx(math.log(1 + n), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_orthogonal_negatives_cost_log_of_one_plus_n_over_e(temperature):
    along, across = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 2.0])
    loss = HighQualityContrastiveLoss(temperature=temperature)(
        along.expand(1, 4, 2), torch.ones(1, 4, dtype=torch.bool), along.expand(1, 2), torch.ones(1, dtype=torch.bool),
        across.expand(1, 8, 2), torch.ones(1, 8, dtype=torch.bool),
    )  # fmt: skip
    assert loss.item() == pytest.approx(math.log(1 + 8 / math.exp(1 / temperature)), rel=1e-6)


def test_order_scale_and_masked_rows_change_nothing():
    rows = make_rows()
    loss = HighQualityContrastiveLoss()(**rows)
    a, n = torch.randperm(6), torch.randperm(9)
    permuted = rows | {"anchors": rows["anchors"][:, a], "anchor_mask": rows["anchor_mask"][:, a]}
    permuted |= {"negatives": rows["negatives"][:, n], "negative_mask": rows["negative_mask"][:, n]}
    torch.testing.assert_close(HighQualityContrastiveLoss()(**permuted), loss)
    scaled = rows | {k: rows[k] * 10 ** (4 * torch.rand(*rows[k].shape[:-1], 1) - 2) for k in ("anchors", "negatives")}
    scaled["centers"] = rows["centers"] * 37
    torch.testing.assert_close(HighQualityContrastiveLoss()(**scaled), loss)
    padded = dict(rows)
    for name, mask in (("anchors", "anchor_mask"), ("negatives", "negative_mask")):
        padded[name] = torch.cat([1e3 * torch.randn(4, 90, 5, dtype=torch.float64), rows[name]], 1)
        padded[mask] = torch.cat([torch.zeros(4, 90, dtype=torch.bool), rows[mask]], 1)
    # The pool has more columns than num_negatives, but no more valid rows: still all of them.
    torch.testing.assert_close(HighQualityContrastiveLoss()(**padded), loss)


def one_anchor_against(pool: int, num_negatives: int, mask: Tensor | None = None) -> Tensor:
    """Which negatives a single anchor met: those that got a gradient."""
    negatives = torch.randn(1, pool, 8, requires_grad=True)
    mask = torch.ones(pool, dtype=torch.bool) if mask is None else mask
    yes = torch.ones(1, dtype=torch.bool)
    HighQualityContrastiveLoss(num_negatives)(
        torch.randn(1, 1, 8), yes[None], torch.randn(1, 8), yes, negatives, mask[None]
    ).backward()
    return negatives.grad[0].abs().sum(-1) > 0


def test_an_anchor_meets_exactly_num_negatives_distinct_valid_rows_of_a_larger_pool():
    torch.manual_seed(0)
    assert one_anchor_against(60, 50).sum() == 50
    mask = torch.rand(200) < 0.5
    met = one_anchor_against(200, 50, mask)
    assert met.sum() == 50
    assert not (met & ~mask).any()


def test_a_pool_as_large_as_num_negatives_is_met_whole_by_each_anchor():
    rows = make_rows(pool=9)
    rows["negative_mask"][:] = True
    assert_equal_to_naive(HighQualityContrastiveLoss(num_negatives=9)(**rows), naive_hqcl(**rows))


@pytest.mark.parametrize("special", [0, 31, 59])
def test_each_anchor_has_its_own_uniform_draw(special):
    """One negative of 60 is costly. Each of 4000 anchors meets it with probability 50/60, independently."""
    torch.manual_seed(special)
    pool, drawn, anchors = 60, 50, 4000
    along, across = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    negatives = across.repeat(1, pool, 1)
    negatives[0, special] = along
    loss = HighQualityContrastiveLoss(drawn)(
        along.expand(1, anchors, 2), torch.ones(1, anchors, dtype=torch.bool), along[None],
        torch.ones(1, dtype=torch.bool), negatives, torch.ones(1, pool, dtype=torch.bool),
    ).item()  # fmt: skip
    without = math.log(1 + drawn / math.e)
    with_it = math.log(2 + (drawn - 1) / math.e)
    share = (loss - without) / (with_it - without)
    p = drawn / pool
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / anchors)


def test_draws_differ_between_calls_and_repeat_with_the_seed():
    rows = make_rows(pool=80)
    rows["negative_mask"][:] = True
    loss = HighQualityContrastiveLoss(5)
    torch.manual_seed(3)
    first, second = loss(**rows), loss(**rows)
    torch.manual_seed(3)
    assert loss(**rows) == first
    assert first != second


def test_gradient_reaches_anchors_and_negatives_but_not_centers():
    rows = make_rows()
    for name in ("anchors", "centers", "negatives"):
        rows[name].requires_grad_()
    HighQualityContrastiveLoss()(**rows).backward()
    for name, mask in (("anchors", "anchor_mask"), ("negatives", "negative_mask")):
        assert torch.equal(rows[name].grad.abs().sum(-1) > 0, rows[mask])
    assert rows["centers"].grad is None or not rows["centers"].grad.any()


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("missing", [(0, 9), (6, 0), (0, 0), "anchor_mask", "negative_mask", "center_mask"])
def test_nothing_to_contrast_is_a_zero_with_a_graph(missing, classes):
    anchors, pool = (6, 9) if isinstance(missing, str) else missing
    rows = make_rows(classes, max(anchors, 2), max(pool, 3), dtype=torch.float32)
    rows |= {k: rows[k][:, :anchors] for k in ("anchors", "anchor_mask")}
    rows |= {k: rows[k][:, :pool] for k in ("negatives", "negative_mask")}
    if isinstance(missing, str):
        rows[missing][:] = False
    for name in ("anchors", "negatives"):
        rows[name] = rows[name].clone().requires_grad_()
    loss = HighQualityContrastiveLoss()(**rows)
    assert loss.shape == ()
    assert loss.item() == 0
    loss.backward()
    for name in ("anchors", "negatives"):
        grad = rows[name].grad
        assert grad is None or torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_and_zero_rows_stay_finite(value):
    rows = make_rows(classes=1, dtype=torch.float32)
    for name in ("anchors", "centers", "negatives"):
        rows[name] = torch.full_like(rows[name], value).requires_grad_(name != "centers")
    loss = HighQualityContrastiveLoss()(**rows)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1 + rows["negative_mask"].sum().item()), rel=1e-5)
    assert torch.isfinite(rows["anchors"].grad).all()
    assert torch.isfinite(rows["negatives"].grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_is_computed_in_float32(dtype):
    """Rows so long that their squares overflow float16."""
    rows = {k: (v * 1000).to(dtype) if v.is_floating_point() else v for k, v in make_rows().items()}
    loss = HighQualityContrastiveLoss()(**rows)
    assert loss.dtype == torch.float32
    wide = {k: v.double() if v.is_floating_point() else v for k, v in rows.items()}
    torch.testing.assert_close(loss.double(), naive_hqcl(**wide), rtol=1e-5, atol=0)


def test_autocast_changes_nothing():
    rows = make_rows(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = HighQualityContrastiveLoss()(**rows)
    torch.testing.assert_close(inside, HighQualityContrastiveLoss()(**rows), rtol=1e-6, atol=0)


@pytest.mark.parametrize("wrong", [{"num_negatives": 0}, {"temperature": 0.0}, {"temperature": -1.0}])
def test_impossible_values_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HighQualityContrastiveLoss(**wrong)
