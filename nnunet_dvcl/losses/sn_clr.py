"""SNCLR: neighbors as soft positives, and the weights that it gives them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_dvcl.voxels.precision import at_least_float32, full_precision


@torch.no_grad()
def positiveness(queries: Tensor, neighbors: Tensor) -> Tensor:
    """How much each neighbor supports its query: the softmax over its neighbors of the cosine.

    Ge et al., "Soft Neighbors are Positive Supporters in Contrastive Visual Representation Learning", with the
    attention of its released code, which has no weights of its own.

    Args:
        queries: [Q, d].
        neighbors: [Q, K, d].

    Returns:
        [Q, K], at least float32, without graph; the K values of a query sum to 1.
    """
    queries = F.normalize(at_least_float32(queries), dim=-1)
    neighbors = F.normalize(at_least_float32(neighbors), dim=-1)
    with full_precision(queries.device):
        return torch.einsum("qd,qkd->qk", queries, neighbors).softmax(1)


def sn_clr(queries: Tensor, views: Tensor, neighbors: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross entropy of each query with its other view (weight 1) and its neighbors (weight `positiveness`).

    The softmax runs over the views and the neighbors of all queries. Ge et al., see `positiveness`; DVCL, Table 3.

    Args:
        queries: [Q, d]; the only input that gets a gradient.
        views: [Q, d] the other view of the queries; detached here.
        neighbors: [Q, K, d]; detached here.
        temperature: above 0.

    Returns:
        [] the mean over the queries, at least float32; 0 with a graph for no query.
    """
    num_queries, num_targets = len(queries), 1 + neighbors.shape[1]
    targets = torch.cat((at_least_float32(views)[:, None], at_least_float32(neighbors)), 1).detach()  # [Q, 1 + K, d]
    rows = F.normalize(at_least_float32(queries), dim=-1)
    with full_precision(rows.device):
        logits = rows @ F.normalize(targets, dim=-1).flatten(0, 1).T / temperature
    own = torch.arange(num_queries, device=rows.device)
    likelihood = logits.log_softmax(1).view(num_queries, num_queries, num_targets)[own, own]  # [Q, 1 + K]
    supported = (positiveness(queries, neighbors) * likelihood[:, 1:]).sum(1)
    return -(likelihood[:, 0] + supported).sum() / max(num_queries, 1)
