"""Contrast with complementary centers: away from what an unreliable voxel is least likely to be."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_dvcl.voxels.precision import at_least_float32, full_precision


def complementary_center_contrast(
    features: Tensor,
    probabilities: Tensor,
    centers: Tensor,
    center_mask: Tensor,
    temperature: float = 1.0,
    likely_classes: int = 3,
) -> Tensor:
    """Pushes each voxel away from the centers of its complementary labels, the classes that it is least likely of.

    log(1 + Σ_c exp((cos(r, P_c) - 1) / temperature)): InfoNCE (DVCL, Eq. 10) whose positive is the voxel itself, so
    that nothing pulls. After U2PL (Wang et al., CVPR 2022), which takes the `likely_classes` most probable classes of
    an unreliable pixel as possible and the others as complementary. With fewer classes, so that none would be left,
    the least likely one alone is complementary.

    Args:
        features: [Q, d] of unreliable voxels; the only input that gets a gradient.
        probabilities: [Q, C] of the same voxels.
        centers: [C, d]; detached here.
        center_mask: [C] bool, False: the class has no center yet.
        temperature: above 0.
        likely_classes: how many classes of a voxel are not complementary, at least 1.

    Returns:
        [] the mean over the voxels with a complementary label, at least float32; 0 with a graph where there is none.
    """
    possible = max(1, min(likely_classes, probabilities.shape[1] - 1))
    rank = probabilities.argsort(1, descending=True).argsort(1)  # [Q, C], 0: the most likely class
    complementary = (rank >= possible) & center_mask
    features = F.normalize(at_least_float32(features), dim=-1)
    with full_precision(features.device):
        cosine = features @ F.normalize(centers.detach().to(features.dtype), dim=-1).T  # [Q, C]
    push = ((cosine - 1) / temperature).masked_fill(~complementary, -torch.inf)
    loss = F.pad(push, (1, 0)).logsumexp(1)  # the pad is log 1
    active = complementary.any(1)
    return loss.masked_fill(~active, 0.0).sum() / active.sum().clamp(min=1)
