"""Distance-aware contrast: Eq. 14 and 16-19."""

import math

import pytest
import torch
from naive_distance_aware import ANGLES, EVERY, circle, literal_psi, make_rows, naive_dvcl, naive_neighborhoods
from torch import Tensor

from nnunet_dvcl.losses import DistanceAwareContrastiveLoss


@pytest.mark.parametrize("partition", [True, False])
@pytest.mark.parametrize("detect", [True, False])
@pytest.mark.parametrize(("k", "k_out", "u"), [(5, 5, 20), (3, 7, 5), (4, 4, 2)])
def test_loss_equals_the_loops_of_equation_19(k, k_out, u, partition, detect):
    rows = make_rows(seed=k)
    loss = DistanceAwareContrastiveLoss(k, k_out, u, 0.3, partition, detect)(*rows)
    expected = naive_dvcl(*rows, k, k_out, u, 0.3, partition, detect)
    exact = loss.dtype == torch.float64
    assert loss.shape == ()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-10 if exact else 1e-5, atol=1e-12 if exact else 1e-6)


def test_defaults_are_the_papers():
    rows = make_rows(n=120, num_queries=30)
    expected = naive_dvcl(*rows, 5, 5, 50, 0.5)
    torch.testing.assert_close(DistanceAwareContrastiveLoss()(*rows).double(), expected, rtol=1e-5, atol=1e-6)


def test_by_default_an_outlier_is_beyond_the_50_nearest_of_its_neighbors():
    """Row 60 is beyond a crowd of 60, row 91 beyond one of 30."""
    crowds = [*range(60), 90, *(200 + i for i in range(30)), 275]
    features = circle([a / 2 if a < 60 else a for a in crowds])
    outlier = DistanceAwareContrastiveLoss().neighborhoods(features, torch.arange(92)).outlier
    assert outlier.nonzero().flatten().tolist() == [60]


def test_forward_is_the_score_of_the_neighborhoods():
    query_p, queries, features, candidate_p = make_rows()
    loss = DistanceAwareContrastiveLoss(4, 4, 7)
    found = loss.neighborhoods(features.requires_grad_(), queries)
    torch.testing.assert_close(loss.score(query_p, candidate_p, found), loss(query_p, queries, features, candidate_p))
    assert not any(x.requires_grad for x in (found.neighbors, found.relevant, found.outsiders, found.outlier))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("k", "k_out"), [(5, 5), (1, 1), (6, 3)])
def test_literal_likelihood_ratio_stays_below_the_bound_of_equation_18(seed, k, k_out):
    """psi <= psi-bar; with K = K' they are the same. One query at a time."""
    query_p, queries, features, candidate_p = make_rows(seed=seed)
    loss = DistanceAwareContrastiveLoss(k, k_out, 20, 0.5, True, False)
    for i, (c, relevant, d, _) in enumerate(naive_neighborhoods(features, queries.tolist(), k, k_out, 20)):
        psi = literal_psi(query_p[i], c, relevant, d, candidate_p)
        bound = loss(query_p[i : i + 1], queries[i : i + 1], features, candidate_p).item()
        bound += (k - k_out) * (math.log(len(features)) + 1)
        assert psi <= bound + 1e-5
        if k == k_out:
            assert psi == pytest.approx(bound, abs=1e-5)


def test_loss_ignores_order_scale_and_dropped_queries():
    query_p, queries, features, candidate_p = make_rows()
    loss = DistanceAwareContrastiveLoss(5, 5, 9)
    expected = loss(query_p, queries, features, candidate_p)
    order, shuffle = torch.randperm(40), torch.randperm(12)
    moved = (query_p[shuffle], order.argsort()[queries][shuffle], 7 * features[order], candidate_p[order])
    torch.testing.assert_close(loss(*moved), expected)
    dropped = (torch.cat([torch.rand(3, 4), query_p]), torch.cat([torch.full((3,), -1), queries]))
    torch.testing.assert_close(loss(*dropped, features, candidate_p), expected)


@pytest.mark.parametrize("detect", [True, False])
def test_dropped_queries_do_not_count_even_without_outlier_detection(detect):
    query_p, queries, features, candidate_p = make_rows()
    loss = DistanceAwareContrastiveLoss(5, 5, 9, detect_outliers=detect)
    keep = torch.arange(12) % 3 != 0
    expected = loss(query_p[keep], queries[keep], features, candidate_p)
    torch.testing.assert_close(loss(query_p, queries.where(keep, torch.tensor(-1)), features, candidate_p), expected)


def test_outliers_are_no_queries_but_stay_candidates():
    features = circle(ANGLES)
    p = torch.randn(9, 3, dtype=torch.float64).softmax(-1)
    loss = DistanceAwareContrastiveLoss(2, 2, 3)
    torch.testing.assert_close(loss(p, EVERY, features, p), loss(p[:8], EVERY[:8], features, p))
    changed = p.clone()
    changed[8] = torch.tensor([0.0, 0.0, 1.0])  # an outsider of rows 0 to 7
    assert not torch.isclose(loss(p[:8], EVERY[:8], features, changed), loss(p[:8], EVERY[:8], features, p))


def test_gradient_flows_through_the_querys_probabilities_alone():
    query_p, queries, features, candidate_p = (x.requires_grad_(x.is_floating_point()) for x in make_rows())
    DistanceAwareContrastiveLoss(5, 5, 9)(query_p, queries, features, candidate_p).backward()
    for other in (features, candidate_p):
        assert other.grad is None or not other.grad.any()
    expected = torch.zeros_like(query_p)
    found = naive_neighborhoods(features.detach(), queries.tolist(), 5, 5, 9)
    kept = sum(not outlier for *_, outlier in found)
    for i, (c, relevant, d, outlier) in enumerate(found):
        if not outlier:
            affinity = torch.tensor([1.0 if r else 0.5 for r in relevant], dtype=torch.float64)
            expected[i] = (candidate_p[d].sum(0) - affinity @ candidate_p[c]).detach() / kept
    torch.testing.assert_close(query_p.grad, expected, rtol=1e-5, atol=1e-7)


def test_a_query_that_shares_its_graph_with_the_candidates_gets_no_second_gradient():
    _, queries, features, candidate_p = make_rows()
    loss = DistanceAwareContrastiveLoss(5, 5, 9)
    shared = candidate_p.clone().requires_grad_()
    loss(shared[queries], queries, features, shared).backward()
    alone = candidate_p.clone().requires_grad_()
    loss(alone[queries], queries, features, candidate_p).backward()
    torch.testing.assert_close(shared.grad, alone.grad)


def assert_zero_with_graph(loss: Tensor, query_p: Tensor) -> None:
    assert loss.shape == ()
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(query_p.grad, torch.zeros_like(query_p))


@pytest.mark.parametrize("detect", [True, False])
@pytest.mark.parametrize("n", [0, 1, 40])
def test_no_query_is_a_zero_with_a_graph(n, detect):
    query_p = torch.zeros(0, 4, requires_grad=True)
    queries = torch.zeros(0, dtype=torch.int64)
    loss = DistanceAwareContrastiveLoss(detect_outliers=detect)
    assert_zero_with_graph(loss(query_p, queries, torch.randn(n, 3), torch.rand(n, 4)), query_p)


@pytest.mark.parametrize("detect", [True, False])
def test_only_dropped_queries_are_a_zero_with_a_graph(detect):
    query_p = torch.rand(3, 4, requires_grad=True)
    loss = DistanceAwareContrastiveLoss(detect_outliers=detect)
    assert_zero_with_graph(loss(query_p, torch.full((3,), -1), torch.randn(9, 3), torch.rand(9, 4)), query_p)


@pytest.mark.parametrize("detect", [True, False])
def test_a_lonely_candidate_has_nothing_to_contrast(detect):
    query_p = torch.rand(1, 4, requires_grad=True)
    loss = DistanceAwareContrastiveLoss(detect_outliers=detect)
    assert_zero_with_graph(loss(query_p, torch.tensor([0]), torch.randn(1, 3), torch.rand(1, 4)), query_p)


def test_only_outliers_are_a_zero_with_a_graph():
    query_p = torch.rand(1, 3, requires_grad=True)
    loss = DistanceAwareContrastiveLoss(2, 2, 3)
    assert_zero_with_graph(loss(query_p, torch.tensor([8]), circle(ANGLES).float(), torch.rand(9, 3)), query_p)


@pytest.mark.parametrize("n", [2, 3, 5, 6, 9])
def test_fewer_candidates_than_neighbors_are_all_neighbors(n):
    rows = make_rows(n=n, num_queries=2)
    loss = DistanceAwareContrastiveLoss()(*rows)
    torch.testing.assert_close(loss.double(), naive_dvcl(*rows, 5, 5, 50), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_and_zero_features_stay_finite(value):
    query_p, queries, features, candidate_p = make_rows(dtype=torch.float32)
    query_p.requires_grad_()
    loss = DistanceAwareContrastiveLoss()(query_p, queries, torch.full_like(features, value), candidate_p)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(query_p.grad).all()


def test_one_class():
    """Every probability is 1: K' outsiders against K relevant neighbors."""
    _, queries, features, _ = make_rows()
    found = naive_neighborhoods(features, queries.tolist(), 5, 5, 50)
    expected = sum(5 - sum(1 if r else 0.5 for r in relevant) for _, relevant, _, _ in found) / len(found)
    loss = DistanceAwareContrastiveLoss()(torch.ones(12, 1), queries, features, torch.ones(40, 1))
    assert loss.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_is_computed_in_float32(dtype):
    """Features so long that their squares overflow float16."""
    query_p, queries, features, candidate_p = make_rows()
    query_p, features, candidate_p = query_p.to(dtype), (1000 * features).to(dtype), candidate_p.to(dtype)
    loss = DistanceAwareContrastiveLoss(5, 5, 9)(query_p, queries, features, candidate_p)
    assert loss.dtype == torch.float32
    wide = naive_dvcl(query_p.double(), queries, features.double(), candidate_p.double(), 5, 5, 9)
    torch.testing.assert_close(loss.double(), wide, rtol=1e-5, atol=1e-6)


def test_autocast_changes_nothing():
    rows = make_rows(dtype=torch.float32, dim=8, n=200, num_queries=60)
    loss = DistanceAwareContrastiveLoss(5, 5, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(*rows)
    torch.testing.assert_close(inside, loss(*rows), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "wrong", [{"num_neighbors": 0}, {"num_outsiders": 0}, {"outlier_neighbors": 0}, {"ordinary_affinity": 1.5}]
)
def test_impossible_values_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DistanceAwareContrastiveLoss(**wrong)


@pytest.mark.parametrize("num_filled", [1, 3, 30])
def test_rows_that_take_no_part_might_as_well_not_be_there(num_filled):
    """Queries that are none, and rows that are no candidates, whatever they hold."""
    _, _, features, candidate_p = make_rows(n=40)
    filled = torch.zeros(40, dtype=torch.bool)
    filled[torch.randperm(40)[:num_filled]] = True
    rows = filled.nonzero()[:, 0]
    loss = DistanceAwareContrastiveLoss(5, 3, 9)
    alone = loss(candidate_p[filled], torch.arange(num_filled), features[filled], candidate_p[filled])
    queries = torch.cat((rows, torch.full((4,), -1)))
    query_p = torch.cat((candidate_p[filled], torch.rand(4, candidate_p.shape[1], dtype=candidate_p.dtype)))
    query_p.requires_grad_()
    among_all = loss(query_p, queries, features, candidate_p, filled)
    torch.testing.assert_close(among_all, alone)
    among_all.backward()
    assert not query_p.grad[-4:].any()
