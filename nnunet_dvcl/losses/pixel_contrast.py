"""Contrast of voxels by their classes, against what a memory holds of each class."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_dvcl.voxels.precision import at_least_float32, full_precision


def pixel_contrast(
    anchors: Tensor, anchor_mask: Tensor, keys: Tensor, key_mask: Tensor, temperature: float = 0.07
) -> Tensor:
    """InfoNCE of each anchor with every key of its class as a positive, and those of all other classes as negatives.

    UGPCL (Wang et al., IJCAI 2022): the mean over positives k of -log e^{s_k} / (e^{s_k} + Σ_n e^{s_n}), where s is the
    cosine / temperature and n the negatives.

    Args:
        anchors: [C, M, d] features; the only input that gets a gradient.
        anchor_mask: [C, M] bool.
        keys: [C, P, d]; detached here.
        key_mask: [C, P] bool.
        temperature: above 0.

    Returns:
        [] the mean over the anchors that have a positive and a negative, at least float32; 0 with a graph without one.
    """
    anchors = F.normalize(at_least_float32(anchors), dim=-1)
    keys = F.normalize(keys.detach().to(anchors.dtype), dim=-1)
    with full_precision(anchors.device):
        similarity = torch.einsum("cmd,kpd->cmkp", anchors, keys) / temperature
    own_class = torch.eye(len(keys), dtype=torch.bool, device=keys.device)
    positive, negative = (key_mask & which[..., None] for which in (own_class, ~own_class))  # [C, C, P]
    active = anchor_mask & (positive.flatten(1).any(1) & negative.flatten(1).any(1))[:, None]  # [C, M]
    # of a class without negatives all are compared: the logarithm of nothing has no gradient
    negative = negative | ~negative.flatten(1).any(1)[:, None, None]
    against = similarity.masked_fill(~negative[:, None], -torch.inf).flatten(2).logsumexp(2)  # [C, M]
    loss = F.softplus(against[..., None, None] - similarity).masked_fill(~positive[:, None], 0.0)
    per_anchor = loss.sum((2, 3)) / positive.sum((1, 2)).clamp(min=1)[:, None]
    return per_anchor.masked_fill(~active, 0.0).sum() / active.sum().clamp(min=1)
