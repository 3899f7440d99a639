"""The rank of a query among all candidates, as its neighbors see it: what Eq. 13 and 15 ask for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_FEW = 256  # groups of candidates within reach of a query; with more it is faster to count among all candidates
_GROUP = 16
_ROWS = 8192  # of candidates that are compared at once; so few stay in the cache
_ROUNDING = 1e-5  # of a cosine in float32, with a margin


class Reachable(NamedTuple):
    """The candidates that can be nearer to a neighbor of a query than the query is."""

    count: Tensor  # [Q] int64 for each query; -1: many, and not listed
    candidates: Tensor  # [sum of the counts] int64, query after query

    @classmethod
    def joined(cls, parts: list[Reachable | None]) -> Reachable | None:
        """Those of several parts of the queries as one."""
        return None if None in parts else cls(*(torch.cat(part) for part in zip(*parts, strict=True)))


def within_reach(similarity: Tensor, neighbors: Tensor) -> Reachable | None:
    """The candidates that `rank_seen_by_neighbors` has to look at; None: at all.

    Args:
        similarity: [Q, N] cosine of queries and candidates; -inf for the query itself and what is absent.
        neighbors: [Q, K] int64, nearest first.
    """
    # on a GPU the host would have to wait to know which queries have few candidates within reach
    if similarity.device.type != "cpu" or neighbors.shape[1] == 0:
        return None
    reach = _reach(similarity.gather(1, neighbors[:, -1:]))
    if similarity.shape[1] % _GROUP:
        similarity = F.pad(similarity, (0, -similarity.shape[1] % _GROUP), value=-torch.inf)
    width = similarity.shape[1]
    near = similarity.unflatten(1, (_GROUP, -1)).amax(1) > reach  # [Q, groups]
    few = near.sum(1) <= _FEW
    query, group = (near & few[:, None]).nonzero(as_tuple=True)
    place = (query * width + group)[:, None] + near.shape[1] * torch.arange(_GROUP)  # [n, 16], of the flat similarity
    inside = similarity.flatten().index_select(0, place.flatten()).view_as(place) > reach[query]
    place = place[inside]
    count = torch.bincount(place // width, minlength=len(similarity))
    return Reachable(count.where(few, -1), place % width)


def rank_seen_by_neighbors(
    features: Tensor, absent: Tensor | None, queries: Tensor, neighbors: Tensor, reachable: Reachable | None
) -> Tensor:
    """How many candidates are nearer to a neighbor than the query is; the neighbor itself does not count.

    Nearer by more than rounding: equal candidates are equally near, in whatever order a product of matrices adds.
    `m ∈ C_n^K` holds where the rank is below K, and `m ∈ C_n^U` where it is below U: no N × N matrix and no sort.

    Args:
        features: [N, d] all candidates, of length 1.
        absent: [N] bool, True: the row is no candidate; None: all are.
        queries: [Q] int64, rows of the candidates.
        neighbors: [Q, K] int64, nearest first.
        reachable: what `within_reach` found.

    Returns:
        [Q, K] int64.
    """
    if reachable is None:
        return _rank_among_all(features, absent, queries, neighbors)
    few = reachable.count >= 0
    ranks = torch.empty_like(neighbors)
    ranks[few] = _rank_among(features, queries[few], neighbors[few], reachable.count[few], reachable.candidates)
    ranks[~few] = _rank_among_all(features, absent, queries[~few], neighbors[~few])
    return ranks


def _reach(cosine: Tensor) -> Tensor:
    """The least cosine to a query of whatever can be nearer to its neighbor, at this cosine, than the query is.

    Angles obey the triangle inequality: that is less than twice as far from the query as the neighbor is.
    """
    return torch.where(cosine > 0, 2 * cosine.square() - 1 - _ROUNDING, -torch.inf)  # cos 2θ


def _rank_among(features: Tensor, queries: Tensor, neighbors: Tensor, count: Tensor, candidates: Tensor) -> Tensor:
    """The rank among the candidates of each query, `Reachable`; queries with as many go together."""
    first = count.cumsum(0) - count
    candidates = F.pad(candidates, (0, 1))  # so that there is one to index where there is none
    ranks = torch.empty_like(neighbors)
    order = count.argsort(descending=True)
    while len(order):
        most = int(count[order[0]])
        some, order = order.tensor_split([max(_ROWS // (1 + most), 1)])
        place = torch.arange(most)
        # row by row the query, its candidates, and the query again where another one has more candidates
        own, inside = queries[some, None], place < count[some, None]
        compared = torch.cat((own, candidates[(first[some, None] + place).where(inside, -1)].where(inside, own)), 1)
        viewers = neighbors[some]
        rows = features.index_select(0, compared.flatten()).unflatten(0, compared.shape)
        similarity = rows @ features[viewers].mT  # [some, 1 + most, K]
        nearer = similarity > similarity[:, :1] + _tie(features)
        ranks[some] = (nearer & (compared[..., None] != viewers[:, None])).sum(1)
    return ranks


def _tie(features: Tensor) -> float:
    """Two cosines that differ by less may be one, rounded differently."""
    return 8 * torch.finfo(features.dtype).eps


def _rank_among_all(features: Tensor, absent: Tensor | None, queries: Tensor, neighbors: Tensor) -> Tensor:
    viewers, viewed = neighbors.flatten(), queries[:, None].expand_as(neighbors).flatten()
    parts = chunks(viewers)
    similarity = features.new_empty(len(parts[0]), len(features))  # one for all parts: fresh memory costs a CPU time
    tie = _tie(features)
    ranks = []
    for n, m in zip(parts, chunks(viewed), strict=True):
        rows = torch.mm(features[n], features.T, out=similarity[: len(n)])
        without(rows, n, absent, -torch.inf)
        # in place, as 0.0 and 1.0: twice as fast as to sum bools
        ranks.append(rows.gt_(rows.gather(1, m[:, None]) + tie).sum(1).long())
    return torch.cat(ranks).view_as(neighbors)


def without(similarity: Tensor, own: Tensor, absent: Tensor | None, value: float) -> Tensor:
    """The same tensor, [n, N], with a value in place of each row's cosine to itself, `own` [n], and to absent rows."""
    if absent is not None:
        similarity.masked_fill_(absent, value)
    return similarity.scatter_(1, own[:, None], value)


def chunks(rows: Tensor) -> tuple[Tensor, ...]:
    """Rows whose similarities to all N candidates are held at once: bounds the memory, whatever the number of queries.

    On a CPU so few that they stay in the cache between the passes over them, which halves the time.
    """
    return rows.split(128 if rows.device.type == "cpu" else 1024)
