"""Contrastive complementary labels: what an unconfident voxel is surely not pushes it away."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_dvcl.voxels.precision import at_least_float32, full_precision


@torch.no_grad()
def least_likely_classes(probabilities: Tensor, share: float = 0.7) -> Tensor:
    """The complementary labels of a voxel: k·C of its classes, those that are least likely.

    CCL (Deng et al., Neural Networks 2024). At least one, and never the most likely one.

    Args:
        probabilities: [N, C], C at least 2.
        share: k, in [0, 1].

    Returns:
        [N, C] bool.
    """
    num_classes = probabilities.shape[1]
    number = max(1, min(int(share * num_classes), num_classes - 1))
    return probabilities.argsort(1).argsort(1) < number


def complementary_contrast(
    rows: Tensor,
    other_views: Tensor,
    classes: Tensor,
    complementary: Tensor,
    taking_part: Tensor,
    temperature: float = 0.07,
) -> Tensor:
    """Supervised contrast of confident voxels, and of unconfident ones by their complementary labels.

    CCL (Deng et al., Neural Networks 2024): of each voxel i, the mean over its positives p of
    -log e^{s_ip} / Σ_a e^{s_ia}, where s is the cosine / temperature and a its positives and negatives. A confident
    voxel has the other confident ones of its class as positives, in both views, and its own other view. An unconfident
    one has its own other view. Negatives, in both views: confident voxels of different classes; a confident and an
    unconfident one whose complementary labels hold the class of the former. Two unconfident ones are none.

    Args:
        rows: [N, d] features; the only input that gets a gradient.
        other_views: [N, d], the same voxels.
        classes: [N] int64, of confident voxels; -1: unconfident.
        complementary: [N, C] bool, read of unconfident voxels alone.
        taking_part: [N] bool.
        temperature: above 0.

    Returns:
        [] the mean over the voxels that take part, at least float32; 0 with a graph where there is none.
    """
    rows = F.normalize(at_least_float32(rows), dim=-1)
    keys = torch.cat((rows, F.normalize(other_views.detach().to(rows.dtype), dim=-1)))
    with full_precision(rows.device):
        similarity = rows @ keys.T / temperature  # [N, 2N]
    confident, itself = classes >= 0, torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    both = confident[:, None] & confident & taking_part[:, None] & taking_part
    same = both & (classes[:, None] == classes)
    unlike = (taking_part & ~confident)[:, None] & (taking_part & confident) & complementary[:, classes.clamp(min=0)]
    negative = (both & ~same) | unlike | unlike.T
    positive = torch.cat((same & ~itself, same | itself), 1)
    compared = positive | torch.cat((negative, negative), 1)
    log_share = similarity - similarity.masked_fill(~compared, -torch.inf).logsumexp(1, keepdim=True)
    loss = -log_share.masked_fill(~positive, 0.0).sum(1) / positive.sum(1)
    return loss.masked_fill(~taking_part, 0.0).sum() / taking_part.sum().clamp(min=1)
