"""What the contrastive losses of Table 3 have in common, as loops."""

import math

import torch
from torch import Tensor


def cos(a: Tensor, b: Tensor) -> Tensor:
    """Of two vectors, without any library's normalization."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (sum(x * x for x in a).sqrt() * sum(y * y for y in b).sqrt())


def pull(anchor: Tensor, positive: Tensor, others: list[Tensor], temperature: float) -> Tensor:
    """-log e^s+ / (e^s+ + the sum of the others' e^s)."""
    above = torch.exp(cos(anchor, positive) / temperature)
    return -torch.log(above / (above + sum(torch.exp(cos(anchor, other) / temperature) for other in others)))


def softmax(values: list[Tensor]) -> list[Tensor]:
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
