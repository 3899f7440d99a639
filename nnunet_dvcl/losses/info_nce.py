"""InfoNCE of features: neighbors as positives, outsiders as negatives."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_dvcl.voxels.precision import at_least_float32, full_precision


def info_nce(queries: Tensor, positives: Tensor, negatives: Tensor, temperature: float = 1.0) -> Tensor:
    """-log e^{s_n} / (e^{s_n} + Σ_k e^{s_k}), s = cosine / temperature; the mean over positives n and queries.

    van den Oord et al., "Representation Learning with Contrastive Predictive Coding", Eq. 4; DVCL, Table 3.

    Args:
        queries: [Q, d]; the only input that gets a gradient.
        positives: [Q, K, d], each a pair with its query.
        negatives: [Q, K', d], shared by the positives of a query.
        temperature: above 0.

    Returns:
        [] at least float32; 0 with a graph where there is no pair.
    """
    queries = F.normalize(at_least_float32(queries), dim=-1)
    positives = F.normalize(at_least_float32(positives.detach()), dim=-1)
    negatives = F.normalize(at_least_float32(negatives.detach()), dim=-1)
    with full_precision(queries.device):
        positive = torch.einsum("qd,qkd->qk", queries, positives) / temperature
        negative = torch.einsum("qd,qkd->qk", queries, negatives) / temperature
    loss = torch.logaddexp(positive, negative.logsumexp(1, keepdim=True)) - positive  # [Q, K]
    return loss.sum() / max(loss.numel(), 1)
