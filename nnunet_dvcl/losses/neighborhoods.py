"""Neighbors, outsiders, relevance (NPS) and outliers (QDS) in feature space (Eq. 12-15)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_dvcl.voxels.precision import at_least_float32, full_precision
from nnunet_dvcl.voxels.ranks import Reachable, chunks, rank_seen_by_neighbors, within_reach, without
from nnunet_dvcl.voxels.topk import topk


class Neighborhoods(NamedTuple):
    """What `find_neighborhoods` finds for Q queries; indices are rows of the candidates, nearest first, -1: none."""

    neighbors: Tensor  # [Q, K] int64, C_m^K of Eq. 12
    relevant: Tensor  # [Q, K] bool, Eq. 13: the query is also among the neighbor's own K nearest
    outsiders: Tensor  # [Q, K'] int64, D_m^K' of Eq. 12
    outlier: Tensor  # [Q] bool, Eq. 15: no neighbor has the query among its U nearest


@torch.no_grad()
def find_neighborhoods(
    features: Tensor,
    queries: Tensor,
    num_neighbors: int,
    num_outsiders: int,
    outlier_neighbors: int,
    filled: Tensor | None = None,
) -> Neighborhoods:
    """The K nearest and K' farthest candidates of each query by cosine, and how the neighbors see the query.

    DVCL, Eq. 12 (neighbors, outsiders), Eq. 13 (neighbor partitioning strategy), Eq. 15 (query detection strategy). A
    query is never its own neighbor or outsider: it is excluded by its index, so an equal row elsewhere still counts.

    Args:
        features: [N, d] all candidates, any floating dtype.
        queries: [Q] int64, each query's own row among the candidates; -1: no query, and nothing is found for it.
        num_neighbors: K.
        num_outsiders: K'.
        outlier_neighbors: U, larger than K.
        filled: [N] bool, False: the row is no candidate; None: all are.

    Returns:
        Neighborhoods without graph. With N <= K, there are N - 1 neighbors; likewise for the outsiders.
    """
    features = F.normalize(at_least_float32(features), dim=-1)
    absent = _absent(filled)
    asked, own = queries >= 0, queries.clamp(min=0)
    with full_precision(features.device):
        nearest, farthest, reachable = _nearest_and_farthest(features, absent, own, num_neighbors, num_outsiders)
        rank = rank_seen_by_neighbors(features, absent, own, nearest.indices, reachable)
    found = asked[:, None] & nearest.values.isfinite()  # [Q, K]
    return Neighborhoods(
        nearest.indices.where(found, -1),
        (rank < num_neighbors) & found,
        farthest.indices.where(asked[:, None] & farthest.values.isfinite(), -1),
        asked & ~((rank < outlier_neighbors) & found).any(1),
    )


class _Found(NamedTuple):
    values: Tensor  # [Q, K] cosines, infinite: none
    indices: Tensor  # [Q, K] rows of the candidates


def _nearest_and_farthest(
    features: Tensor, absent: Tensor | None, queries: Tensor, k: int, k_out: int
) -> tuple[_Found, _Found, Reachable | None]:
    others = max(len(features) - 1, 0)
    parts = chunks(queries)
    similarity = features.new_empty(len(parts[0]), len(features))  # one for all parts: fresh memory costs a CPU time
    nearest, farthest, reachable = [], [], []
    for own in parts:
        rows = torch.mm(features[own], features.T, out=similarity[: len(own)])
        nearest.append(topk(without(rows, own, absent, -torch.inf), min(k, others)))
        reachable.append(within_reach(rows, nearest[-1].indices))
        farthest.append(topk(without(rows, own, absent, torch.inf), min(k_out, others), largest=False))
    return _joined(nearest), _joined(farthest), Reachable.joined(reachable)


def _joined(parts: list[torch.return_types.topk]) -> _Found:
    return _Found(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _absent(filled: Tensor | None) -> Tensor | None:
    """[N] bool, which rows to mask; None: every row is a candidate. A GPU's host would have to wait to know."""
    if filled is None or (filled.device.type == "cpu" and filled.all()):
        return None
    return ~filled
