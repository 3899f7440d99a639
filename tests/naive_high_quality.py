"""High-quality contrast as loops, straight from the paper (Eq. 10), and rows to try it on."""

import torch
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def naive_hqcl(anchors, anchor_mask, centers, center_mask, negatives, negative_mask, temperature=1.0) -> Tensor:
    """Eq. 10 and the mean over all C classes, every anchor against the whole pool of its class."""
    total = anchors.sum() * 0
    for c in range(len(anchors)):
        anchor_rows = [r for r, use in zip(anchors[c], anchor_mask[c], strict=True) if use]
        negative_rows = [r for r, use in zip(negatives[c], negative_mask[c], strict=True) if use]
        if not anchor_rows or not negative_rows or not center_mask[c]:
            continue
        class_loss = 0
        for r in anchor_rows:
            positive = torch.exp(cosine(r, centers[c]) / temperature)
            against = sum(torch.exp(cosine(r, n) / temperature) for n in negative_rows)
            class_loss = class_loss - torch.log(positive / (positive + against))
        total = total + class_loss / len(anchor_rows)
    return total / len(anchors)


def make_rows(classes=4, anchors=6, pool=9, dim=5, dtype=torch.float64, seed=0) -> dict[str, Tensor]:
    """Random rows: a few masked ones in each class, and every class has an anchor, a center and a negative."""
    g = torch.Generator().manual_seed(seed)
    rows = {
        "anchors": torch.randn(classes, anchors, dim, dtype=dtype, generator=g),
        "anchor_mask": torch.rand(classes, anchors, generator=g) < 0.7,
        "centers": torch.randn(classes, dim, dtype=dtype, generator=g),
        "center_mask": torch.ones(classes, dtype=torch.bool),
        "negatives": torch.randn(classes, pool, dim, dtype=dtype, generator=g),
        "negative_mask": torch.rand(classes, pool, generator=g) < 0.7,
    }
    rows["anchor_mask"][:, 1] = True
    rows["negative_mask"][:, 2] = True
    return rows
