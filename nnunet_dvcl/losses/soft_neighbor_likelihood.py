"""DVCL's log-likelihood with the neighbor weights of SNCLR."""

import torch
from torch import Tensor

from nnunet_dvcl.voxels.precision import at_least_float32, full_precision


def soft_neighbor_likelihood(
    query_probabilities: Tensor, neighbor_probabilities: Tensor, outsider_probabilities: Tensor, weights: Tensor
) -> Tensor:
    """-Σ_n A_mn p_m·p_n + Σ_k p_m·p_k with A_mn = K times the positiveness of n: DVCL, Eq. 18 and Table 3.

    The affinities of a query have the mean 1, as they have without weights, so that weighing changes how the
    attraction is divided and not how strong it is.

    Args:
        query_probabilities: [Q, C]; the only input that gets a gradient.
        neighbor_probabilities: [Q, K, C].
        outsider_probabilities: [Q, K', C].
        weights: [Q, K], see `positiveness`.

    Returns:
        [] the mean over the queries, at least float32; 0 with a graph for no query.
    """
    p = at_least_float32(query_probabilities)
    affinity = weights.detach().to(p.dtype) * weights.shape[1]
    with full_precision(p.device):
        attraction = torch.einsum("qc,qkc->qk", p, neighbor_probabilities.detach().to(p.dtype))
        separation = torch.einsum("qc,qkc->qk", p, outsider_probabilities.detach().to(p.dtype))
    return (separation.sum() - (affinity * attraction).sum()) / max(len(p), 1)
