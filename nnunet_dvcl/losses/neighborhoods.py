"""Neighbors, outsiders, relevance (NPS) and outliers (QDS) in feature space (Eq. 12-15)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_dvcl.losses.precision import at_least_float32, full_precision


class Neighborhoods(NamedTuple):
    """What `find_neighborhoods` finds for Q queries; indices are rows of the candidates, nearest first."""

    neighbors: Tensor  # [Q, K] int64, C_m^K of Eq. 12
    relevant: Tensor  # [Q, K] bool, Eq. 13: the query is also among the neighbor's own K nearest
    outsiders: Tensor  # [Q, K'] int64, D_m^K' of Eq. 12
    outlier: Tensor  # [Q] bool, Eq. 15: no neighbor has the query among its U nearest


@torch.no_grad()
def find_neighborhoods(
    features: Tensor, queries: Tensor, num_neighbors: int, num_outsiders: int, outlier_neighbors: int
) -> Neighborhoods:
    """The K nearest and K' farthest candidates of each query by cosine, and how the neighbors see the query.

    DVCL, Eq. 12 (neighbors, outsiders), Eq. 13 (neighbor partitioning strategy), Eq. 15 (query detection strategy). A
    query is never its own neighbor or outsider: it is excluded by its index, so an equal row elsewhere still counts.

    Args:
        features: [N, d] all candidates, any floating dtype.
        queries: [Q] int64, each query's own row among the candidates.
        num_neighbors: K.
        num_outsiders: K'.
        outlier_neighbors: U, larger than K.

    Returns:
        Neighborhoods without graph. With N <= K, there are N - 1 neighbors; likewise for the outsiders.
    """
    features = F.normalize(at_least_float32(features), dim=-1)
    with full_precision(features.device):
        parts = [
            _neighborhoods_of(features, chunk, num_neighbors, num_outsiders, outlier_neighbors)
            for chunk in _chunks(queries)
        ]
    return Neighborhoods(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _neighborhoods_of(features: Tensor, queries: Tensor, k: int, k_out: int, u: int) -> Neighborhoods:
    others = max(features.shape[0] - 1, 0)
    own = queries[:, None]
    similarity = features[queries] @ features.T  # [Q, N]
    neighbors = similarity.scatter_(1, own, -torch.inf).topk(min(k, others), dim=1).indices
    outsiders = similarity.scatter_(1, own, torch.inf).topk(min(k_out, others), dim=1, largest=False).indices

    rank = _rank_seen_by(features, neighbors.flatten(), own.expand_as(neighbors).flatten()).view_as(neighbors)
    return Neighborhoods(neighbors, rank < k, outsiders, ~(rank < u).any(1))


def _rank_seen_by(features: Tensor, viewers: Tensor, viewed: Tensor) -> Tensor:
    """How many candidates, the viewer left out, are nearer to the viewer than the viewed: [V], a whole number each.

    Counting answers `m ∈ C_n^K` and `m ∈ C_n^U` with one comparison: no N × N matrix and no sort.
    """
    ranks = []
    for n, m in zip(_chunks(viewers), _chunks(viewed), strict=True):
        similarity = (features[n] @ features.T).scatter_(1, n[:, None], -torch.inf)
        # in place, as 0.0 and 1.0: twice as fast as to sum bools
        ranks.append(similarity.gt_(similarity.gather(1, m[:, None])).sum(1))
    return torch.cat(ranks)


def _chunks(rows: Tensor) -> tuple[Tensor, ...]:
    """Rows whose similarities to all N candidates are held at once: bounds the memory, whatever the number of queries.

    On a CPU so few that they stay in the cache between the passes over them, which halves the time.
    """
    return rows.split(128 if rows.device.type == "cpu" else 1024)
