"""The rank of a query among all candidates, as its neighbors see it: what Eq. 13 and 15 ask for."""

import torch
from torch import Tensor
from torch.nn import functional as F

_FEW = 128  # groups of candidates within reach of a query; with more it is faster to count among all candidates
_GROUP = 16
_ROUNDING = 1e-5  # of a cosine in float32, with a margin


def rank_seen_by_neighbors(
    features: Tensor, absent: Tensor, similarity: Tensor, queries: Tensor, neighbors: Tensor
) -> Tensor:
    """How many candidates are nearer to a neighbor than the query is; the neighbor itself does not count.

    Nearer by more than rounding: equal candidates are equally near, in whatever order a product of matrices adds.
    `m ∈ C_n^K` holds where the rank is below K, and `m ∈ C_n^U` where it is below U: no N × N matrix and no sort.

    Args:
        features: [N, d] all candidates, of length 1.
        absent: [N] 0, or -inf: the row is no candidate.
        similarity: [Q, N] cosine of queries and candidates; -inf for the query itself and what is absent.
        queries: [Q] int64, rows of the candidates.
        neighbors: [Q, K] int64, nearest first.

    Returns:
        [Q, K] int64.
    """
    # on a GPU the host would have to wait to know which queries have few candidates within reach
    if features.device.type != "cpu" or neighbors.shape[1] == 0:
        return _rank_among_all(features, absent, queries, neighbors)
    reach = _reach(similarity.gather(1, neighbors[:, -1:]))
    similarity = F.pad(similarity, (0, -len(features) % _GROUP), value=-torch.inf)
    near = similarity.unflatten(1, (_GROUP, -1)).amax(1) > reach  # [Q, groups]
    few = near.sum(1) <= _FEW
    query, group = (near & few[:, None]).nonzero(as_tuple=True)
    candidate = group[:, None] + near.shape[1] * torch.arange(_GROUP)  # [n, 16]
    inside = similarity[query[:, None], candidate] > reach[query]
    query = query[:, None].expand_as(inside)[inside]
    ranks = _rank_among(features, queries, neighbors, query, candidate[inside])
    ranks[~few] = _rank_among_all(features, absent, queries[~few], neighbors[~few])
    return ranks


def _reach(cosine: Tensor) -> Tensor:
    """The least cosine to a query of whatever can be nearer to its neighbor, at this cosine, than the query is.

    Angles obey the triangle inequality: that is less than twice as far from the query as the neighbor is.
    """
    return torch.where(cosine > 0, 2 * cosine.square() - 1 - _ROUNDING, -torch.inf)  # cos 2θ


def _rank_among(features: Tensor, queries: Tensor, neighbors: Tensor, query: Tensor, candidate: Tensor) -> Tensor:
    """The rank among the candidates of each query: pairs of a place in `queries`, ascending, and a candidate's row."""
    count = torch.bincount(query, minlength=len(queries))
    place = torch.arange(len(query)) - (count.cumsum(0) - count)[query]
    # row by row the query, its candidates, and the query again where another one has more candidates
    compared = queries[:, None].repeat(1, 1 + max(count.tolist(), default=0))
    compared[query, 1 + place] = candidate
    rows = features.index_select(0, compared.flatten()).unflatten(0, compared.shape)
    similarity = features[neighbors] @ rows.mT  # [Q, K, 1 + most candidates]
    nearer = similarity > similarity[..., :1] + _tie(features)
    return (nearer & (compared[:, None] != neighbors[..., None])).sum(-1)


def _tie(features: Tensor) -> float:
    """Two cosines that differ by less may be one, rounded differently."""
    return 8 * torch.finfo(features.dtype).eps


def _rank_among_all(features: Tensor, absent: Tensor, queries: Tensor, neighbors: Tensor) -> Tensor:
    viewers, viewed = neighbors.flatten(), queries[:, None].expand_as(neighbors).flatten()
    parts = chunks(viewers)
    similarity = features.new_empty(len(parts[0]), len(features))  # one for all parts: fresh memory costs a CPU time
    tie = _tie(features)
    ranks = []
    for n, m in zip(parts, chunks(viewed), strict=True):
        rows = torch.addmm(absent, features[n], features.T, out=similarity[: len(n)])
        rows.scatter_(1, n[:, None], -torch.inf)
        # in place, as 0.0 and 1.0: twice as fast as to sum bools
        ranks.append(rows.gt_(rows.gather(1, m[:, None]) + tie).sum(1).long())
    return torch.cat(ranks).view_as(neighbors)


def chunks(rows: Tensor) -> tuple[Tensor, ...]:
    """Rows whose similarities to all N candidates are held at once: bounds the memory, whatever the number of queries.

    On a CPU so few that they stay in the cache between the passes over them, which halves the time.
    """
    return rows.split(128 if rows.device.type == "cpu" else 1024)
