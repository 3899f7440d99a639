"""Neighbors, outsiders, relevance (NPS) and outliers (QDS) in feature space (Eq. 12-15)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_dvcl.voxels.precision import at_least_float32, full_precision
from nnunet_dvcl.voxels.ranks import chunks, rank_seen_by_neighbors
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
    # added to the similarity to each candidate
    absent = features.new_zeros(len(features))
    if filled is not None:
        absent.masked_fill_(~filled, -torch.inf)
    with full_precision(features.device):
        parts = [
            _neighborhoods_of(features, absent, chunk, num_neighbors, num_outsiders, outlier_neighbors)
            for chunk in chunks(queries)
        ]
    return Neighborhoods(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _neighborhoods_of(features: Tensor, absent: Tensor, queries: Tensor, k: int, k_out: int, u: int) -> Neighborhoods:
    others = max(len(features) - 1, 0)
    asked, own = queries[:, None] >= 0, queries[:, None].clamp(min=0)
    similarity = torch.addmm(absent, features[own[:, 0]], features.T).scatter_(1, own, -torch.inf)  # [Q, N]
    nearest = topk(similarity, min(k, others))
    rank = rank_seen_by_neighbors(features, absent, similarity, own[:, 0], nearest.indices)
    farthest = topk(similarity.nan_to_num_(neginf=torch.inf), min(k_out, others), largest=False)
    found = asked & nearest.values.isfinite()  # [Q, K]
    return Neighborhoods(
        nearest.indices.where(found, -1),
        (rank < k) & found,
        farthest.indices.where(asked & farthest.values.isfinite(), -1),
        asked[:, 0] & ~((rank < u) & found).any(1),
    )
