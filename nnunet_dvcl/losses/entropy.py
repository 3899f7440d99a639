"""Voxel entropy (Eq. 4)."""

import torch
from torch import Tensor

from nnunet_dvcl.voxels.precision import at_least_float32


def voxel_entropy(probabilities: Tensor) -> Tensor:
    """e = -Σ_c p(c) log p(c), the selection indicator of DVCL, Eq. 4.

    Args:
        probabilities: [B, C, *S], any floating dtype.

    Returns:
        [B, *S] in nats, between 0 and log C, at least float32; 0·log 0 = 0.
    """
    return torch.special.entr(at_least_float32(probabilities)).sum(1)
