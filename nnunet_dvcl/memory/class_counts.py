"""ClassCounts: how frequent each class is."""

import torch
from torch import Tensor, nn


class ClassCounts(nn.Module):
    """The number of voxels of each class that were seen so far.

    Args:
        num_classes: C, background included.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))

    @torch.no_grad()
    def add(self, counts: Tensor) -> None:
        """Counts of voxels, [C]; with several ranks those of all."""
        self.counts.add_(counts)

    def extra_repr(self) -> str:
        return f"num_classes={len(self.counts)}"
