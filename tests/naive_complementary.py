"""Contrastive complementary labels as loops over pairs of voxels."""

import torch
from torch import Tensor


def naive_complementary(
    rows: Tensor, other: Tensor, classes: list[int], complementary: list, part: list[bool], temperature: float
) -> Tensor:
    """Who is whose positive, who negative, and the mean over voxels of the mean of -log of a positive's share."""

    def likeness(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(a @ b / (a.norm() * b.norm()) / temperature)

    losses = []
    for i in (i for i in range(len(rows)) if part[i]):
        positives, negatives = [likeness(rows[i], other[i])], []
        for j in (j for j in range(len(rows)) if part[j] and j != i):
            confident_i, confident_j = classes[i] >= 0, classes[j] >= 0
            if confident_i and confident_j:
                side = positives if classes[i] == classes[j] else negatives
            elif confident_i:
                side = negatives if complementary[j][classes[i]] else []
            else:
                side = negatives if confident_j and complementary[i][classes[j]] else []
            side += [likeness(rows[i], rows[j]), likeness(rows[i], other[j])]
        total = sum(positives) + sum(negatives)
        losses.append(sum(-torch.log(share / total) for share in positives) / len(positives))
    return torch.stack(losses).mean() if losses else torch.zeros(())
