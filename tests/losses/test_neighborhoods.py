"""Neighborhoods: Eq. 12, 13 and 15."""

import pytest
import torch
from naive_distance_aware import ANGLES, EVERY, circle, make_rows, naive_neighborhoods
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_dvcl.losses import find_neighborhoods


@pytest.mark.parametrize(("k", "k_out", "u"), [(5, 5, 20), (1, 1, 1), (3, 7, 5), (7, 2, 39), (4, 4, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_neighborhoods_equal_the_loops_of_equations_12_to_15(seed, k, k_out, u):
    _, queries, features, _ = make_rows(seed=seed)
    found = find_neighborhoods(features, queries, k, k_out, u)
    assert found.neighbors.shape == found.relevant.shape == (12, k)
    assert found.outsiders.shape == (12, k_out)
    assert found.relevant.dtype == found.outlier.dtype == torch.bool
    for i, (c, relevant, d, outlier) in enumerate(naive_neighborhoods(features, queries.tolist(), k, k_out, u)):
        assert found.neighbors[i].tolist() == c
        assert found.relevant[i].tolist() == relevant
        assert sorted(found.outsiders[i].tolist()) == sorted(d)
        assert bool(found.outlier[i]) == outlier


def test_more_queries_than_are_held_at_once_equal_the_loops():
    _, queries, features, _ = make_rows(n=300, num_queries=150)
    found = find_neighborhoods(features, queries, 3, 2, 5)
    naive = naive_neighborhoods(features, queries.tolist(), 3, 2, 5)
    assert found.neighbors.tolist() == [c for c, *_ in naive]
    assert found.relevant.tolist() == [relevant for _, relevant, *_ in naive]
    assert found.outlier.tolist() == [outlier for *_, outlier in naive]


def test_the_random_data_show_every_case():
    """Otherwise the comparison above would prove little."""
    cases = [c for seed in range(3) for c in naive_neighborhoods(*make_rows(seed=seed)[2:0:-1], 3, 7, 5)]
    assert {outlier for *_, outlier in cases} == {True, False}
    assert {r for _, relevant, _, _ in cases for r in relevant} == {True, False}


def test_neighbors_on_a_circle_are_those_one_sees():
    found = find_neighborhoods(circle(ANGLES), EVERY, 2, 2, 3)
    assert found.neighbors.tolist() == [[1, 2], [0, 2], [1, 3], [2, 1], [5, 6], [4, 6], [5, 7], [6, 5], [7, 6]]
    assert [sorted(row) for row in found.outsiders.tolist()] == [
        [7, 8], [7, 8], [7, 8], [7, 8], [0, 8], [0, 8], [0, 8], [0, 1], [2, 3]
    ]  # fmt: skip


def test_reciprocal_neighbors_on_a_circle_are_relevant():
    """The end of a chain names the third as neighbor; the third has two nearer ones."""
    found = find_neighborhoods(circle(ANGLES), EVERY, 2, 2, 3)
    assert found.relevant[:4].tolist() == [[True, False], [True, True], [True, True], [True, False]]
    assert found.relevant[8].tolist() == [False, False]


@pytest.mark.parametrize(("u", "planted_is_outlier"), [(3, True), (5, True), (6, False)])
def test_the_planted_outlier_is_the_only_one(u, planted_is_outlier):
    """Row 7, the planted row's nearest, has five rows nearer than it: 6, 5, 4, 3, 2."""
    found = find_neighborhoods(circle(ANGLES), EVERY, 2, 2, u)
    assert found.outlier.tolist() == [False] * 8 + [planted_is_outlier]


def test_a_query_is_excluded_by_its_index_not_by_its_value():
    features = circle([0, 0, 0, 90, 180])
    found = find_neighborhoods(features, torch.tensor([0, 1, 2]), 2, 1, 2)
    assert [set(row) for row in found.neighbors.tolist()] == [{1, 2}, {0, 2}, {0, 1}]
    assert found.relevant.all()
    assert found.outsiders.tolist() == [[4], [4], [4]]


def test_neighborhoods_follow_a_permutation_and_ignore_scale():
    _, queries, features, _ = make_rows()
    found = find_neighborhoods(features, queries, 5, 5, 9)
    order = torch.randperm(len(features))
    where = order.argsort()
    moved = find_neighborhoods(features[order] * (0.01 + 100 * torch.rand(40, 1)), where[queries], 5, 5, 9)
    assert torch.equal(order[moved.neighbors], found.neighbors)
    assert torch.equal(order[moved.outsiders], found.outsiders)
    assert torch.equal(moved.relevant, found.relevant)
    assert torch.equal(moved.outlier, found.outlier)


def test_many_queries_at_once_find_what_each_finds_alone():
    _, _, features, _ = make_rows(n=1500)
    queries = torch.randperm(1500)
    whole = find_neighborhoods(features, queries, 3, 4, 9)
    parts = [find_neighborhoods(features, part, 3, 4, 9) for part in queries.split(100)]
    for together, alone in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("dim", [3, 64])
@pytest.mark.parametrize("n", [2, 7, 203])
def test_equal_features_are_all_each_others_neighbors(n, dim):
    """Nobody is nearer than anybody else, whatever the rounding: all relevant, nobody an outlier."""
    torch.manual_seed(dim)
    features = torch.randn(1, dim).expand(n, dim)
    found = find_neighborhoods(features, torch.arange(n), 5, 5, 50)
    assert found.relevant.all()
    assert not found.outlier.any()
    for others in (found.neighbors, found.outsiders):
        assert (others != torch.arange(n)[:, None]).all()


class LargestTensor(TorchDispatchMode):
    """Remembers the largest result of any operation."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.numel())
        return result


def test_neighborhoods_keep_nothing_for_a_backward():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
        find_neighborhoods(torch.randn(20, 8, requires_grad=True), torch.arange(5), 3, 3, 6)
    assert not saved


def test_neighborhoods_build_no_square_matrix():
    """Rows of the queries and of their neighbors only: Q x K x N entries, not N x N."""
    features = torch.randn(2000, 8)
    with LargestTensor() as largest:
        find_neighborhoods(features, torch.randperm(2000)[:16], 5, 5, 50)
    assert largest.numel <= 16 * 5 * 2000


@pytest.mark.parametrize("num_filled", [1, 2, 4, 30])
def test_rows_that_are_not_filled_might_as_well_not_be_there(num_filled):
    """Whatever they hold; where fewer candidates than wanted are filled, nobody is found."""
    _, _, features, _ = make_rows(n=40)
    filled = torch.zeros(40, dtype=torch.bool)
    filled[torch.randperm(40)[:num_filled]] = True
    queries = filled.nonzero()[:, 0]
    among_all = find_neighborhoods(features, queries, 5, 3, 9, filled)
    alone = find_neighborhoods(features[filled], torch.arange(num_filled), 5, 3, 9)
    rows = torch.cat((queries, torch.tensor([-1])))  # the last for -1
    for found, expected in ((among_all.neighbors, alone.neighbors), (among_all.outsiders, alone.outsiders)):
        width = min(found.shape[1], num_filled - 1)
        assert torch.equal(found[:, :width], rows[expected[:, :width]])
        assert (found[:, width:] == -1).all()
    assert torch.equal(among_all.relevant[:, : alone.relevant.shape[1]], alone.relevant)
    assert not among_all.relevant[:, alone.relevant.shape[1] :].any()
    assert torch.equal(among_all.outlier, alone.outlier)


def test_no_query_finds_nothing():
    _, queries, features, _ = make_rows(n=40)
    some = torch.tensor([-1, *queries.tolist(), -1])
    found, expected = find_neighborhoods(features, some, 5, 3, 9), find_neighborhoods(features, queries, 5, 3, 9)
    for part, of_queries in zip(found, expected, strict=True):
        assert torch.equal(part[1:-1], of_queries)
    assert (found.neighbors[[0, -1]] == -1).all()
    assert (found.outsiders[[0, -1]] == -1).all()
    assert not found.relevant[[0, -1]].any()
    assert not found.outlier[[0, -1]].any()
