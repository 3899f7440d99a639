"""What an unreliable voxel is not: the classes whose negative it is."""

import torch
from torch import Tensor


@torch.no_grad()
def negative_classes(
    probabilities: Tensor, truth: Tensor | None = None, low_rank: int = 3, high_rank: int = 20
) -> Tensor:
    """The classes that a voxel is a negative of, by the rank of their probability: U2PL (Wang et al., CVPR 2022).

    A class is the candidate of an unlabeled voxel while it is among the `low_rank` most likely ones; the voxel is a
    negative of the next ones, up to `high_rank`: neither candidates nor so unlikely that nothing could be learned. A
    labeled voxel is a negative of the candidates that it is not. With few classes there are fewer candidates, at most
    all but two and at least one, so that neither kind is ever without a class: with 2 or 3 classes one, with 14 three.

    Args:
        probabilities: [N, C], C at least 2.
        truth: [N] int64 of labeled voxels; None: unlabeled ones.
        low_rank: r_l.
        high_rank: r_h, above r_l.

    Returns:
        [N, C] bool.
    """
    num_classes = probabilities.shape[1]
    low_rank = max(1, min(low_rank, num_classes - 2))
    rank = probabilities.argsort(1, descending=True).argsort(1)  # 0: the most likely class
    if truth is None:
        return (rank >= low_rank) & (rank < high_rank)
    return (rank < low_rank) & (torch.arange(num_classes, device=rank.device) != truth[:, None])
