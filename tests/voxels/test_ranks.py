"""The rank of a query as its neighbors see it: among the few within reach as among all."""

import pytest
import torch
from torch.nn import functional as F

from nnunet_dvcl.voxels import ranks
from nnunet_dvcl.voxels.ranks import Reachable, rank_seen_by_neighbors, within_reach


def setting(features, num_queries=60, k=4):
    """Features, queries, their similarities and neighbors; float64, so that the comparisons below are exact."""
    features = F.normalize(features.double(), dim=1)
    queries = torch.randperm(len(features))[:num_queries]
    similarity = (features[queries] @ features.T).scatter_(1, queries[:, None], -torch.inf)
    return features, queries, similarity, similarity.topk(k, 1).indices


def rank(features, queries, similarity, neighbors):
    return rank_seen_by_neighbors(features, None, queries, neighbors, within_reach(similarity, neighbors))


def naive_rank(features, queries, neighbors):
    cosine = (features @ features.T).tolist()  # as numbers of Python, with which a loop is fast
    return [
        [sum(c > cosine[n][m] for x, c in enumerate(cosine[n]) if x != n) for n in of_query]
        for m, of_query in zip(queries.tolist(), neighbors.tolist(), strict=True)
    ]


def clusters(n, dim, number=12, spread=0.05):
    return torch.randn(number, dim)[torch.randint(number, (n,))] + spread * torch.randn(n, dim)


@pytest.mark.parametrize("n", [61, 300, 512])
@pytest.mark.parametrize("dim", [2, 8])
def test_ranks_equal_the_loops(n, dim):
    torch.manual_seed(n + dim)
    for features in (torch.randn(n, dim), clusters(n, dim), clusters(n, dim, spread=1e-4)):
        arguments = setting(features)
        of_features, queries, _, neighbors = arguments
        assert rank(*arguments).tolist() == naive_rank(of_features, queries, neighbors)


@pytest.mark.parametrize("most", [0, 3, 10, 1000])
def test_it_does_not_matter_how_many_count_as_few(most, monkeypatch):
    """So that both ways to count, and both in one call, give the same."""
    torch.manual_seed(0)
    arguments = setting(torch.cat((clusters(1500, 16), torch.randn(500, 16))), num_queries=300)
    expected = rank(*arguments)
    monkeypatch.setattr(ranks, "_FEW", most)
    assert torch.equal(rank(*arguments), expected)


@pytest.mark.parametrize("most", [1, 30, 500])
def test_it_does_not_matter_how_many_are_compared_at_once(most, monkeypatch):
    torch.manual_seed(0)
    arguments = setting(torch.cat((clusters(1500, 16), torch.randn(500, 16))), num_queries=300)
    expected = rank(*arguments)
    monkeypatch.setattr(ranks, "_ROWS", most)
    assert torch.equal(rank(*arguments), expected)


def test_queries_in_parts_are_as_all_at_once():
    torch.manual_seed(0)
    features, queries, similarity, neighbors = setting(torch.cat((clusters(1500, 16), torch.randn(500, 16))), 300)
    parts = [within_reach(*part) for part in zip(similarity.split(70), neighbors.split(70), strict=True)]
    together = rank_seen_by_neighbors(features, None, queries, neighbors, Reachable.joined(parts))
    assert torch.equal(together, rank(features, queries, similarity, neighbors))


def test_clustered_candidates_are_not_all_gone_through(monkeypatch):
    """What makes it fast: features of voxels lie in clusters."""
    torch.manual_seed(0)
    arguments = setting(clusters(4096, 16, number=64))
    counted = []
    among_all = ranks._rank_among_all
    monkeypatch.setattr(ranks, "_rank_among_all", lambda f, a, q, n: counted.append(len(q)) or among_all(f, a, q, n))
    rank(*arguments)
    assert sum(counted) < 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 17, 40, 129, 400])
def test_nobody_is_nearer_among_equal_features(n, dtype):
    torch.manual_seed(n)
    for dim in (3, 16, 64):
        features = F.normalize(torch.randn(1, dim, dtype=dtype), dim=1).repeat(n, 1)
        queries = torch.arange(n)
        similarity = (features @ features.T).scatter_(1, queries[:, None], -torch.inf)
        neighbors = similarity.topk(1, 1).indices
        assert not rank(features, queries, similarity, neighbors).any()


def test_opposite_neighbors_have_everybody_within_reach():
    """A neighbor at more than 90 degrees: twice the angle is beyond the opposite of the query."""
    features = F.normalize(torch.tensor([[1.0, 0, 0], [-1, 0.1, 0], [-1, 0, 0.1], [-1, -0.1, 0]]).double(), dim=1)
    queries = torch.tensor([0])
    similarity = (features[queries] @ features.T).scatter_(1, queries[:, None], -torch.inf)
    neighbors = similarity.topk(3, 1).indices
    assert rank(features, queries, similarity, neighbors).tolist() == [[2, 2, 2]]
