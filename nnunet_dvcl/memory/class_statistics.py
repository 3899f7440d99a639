"""What is remembered of classes over the steps: how large their share is, and how certain they are.

A voxel makes R decisions, each for one of K classes: with labels one for one of C, with regions each in or out.
"""

import torch
from torch import Tensor, nn


class ClassShares(nn.Module):
    """``shares``: the share of the voxels that each class has, [K, R], averaged over the steps.

    Args:
        num_classes: K.
        num_decisions: R.
    """

    def __init__(self, num_classes: int, num_decisions: int):
        super().__init__()
        self.register_buffer("shares", torch.zeros(num_classes, num_decisions))

    @torch.no_grad()
    def update(self, counts: Tensor, decay: float) -> None:
        """Shares become decay·shares + (1 - decay)·(those of this step); a step without voxels changes nothing.

        Args:
            counts: [K, R], the voxels of each class.
            decay: in [0, 1]; 0: those of this step.
        """
        total = counts.sum(0)
        current = counts / total.clamp(min=1)
        self.shares.copy_(
            torch.lerp(self.shares, current.to(self.shares.dtype), 1 - decay).where(total > 0, self.shares)
        )


class ClassConfidence(nn.Module):
    """``confidence``: how likely the true class of a voxel is to a network, the mean over each class, [K, R].

    Averaged over the steps that had the class; ``seen`` tells which had any (CLD, Lin et al., MICCAI 2022).

    Args:
        num_classes: K.
        num_decisions: R.
        decay: share of the average that stays in a step.
    """

    def __init__(self, num_classes: int, num_decisions: int, decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("confidence", torch.zeros(num_classes, num_decisions))
        self.register_buffer("seen", torch.zeros(num_classes, num_decisions, dtype=torch.bool))

    @torch.no_grad()
    def update(self, sums: Tensor, counts: Tensor) -> None:
        """A step more; what is not finite is ignored.

        Args:
            sums: [K, R], of the probabilities of the true class.
            counts: [K, R], the voxels of each class.
        """
        current = (sums / counts.clamp(min=1)).to(self.confidence.dtype)
        usable = (counts > 0) & current.isfinite()
        average = torch.lerp(self.confidence, current, 1 - self.decay).where(self.seen, current)
        self.confidence.copy_(average.where(usable, self.confidence))
        self.seen |= usable

    def rates(self, power: float) -> Tensor:
        """((1 - conf_c) / max_k (1 - conf_k))^β, [K, R] in [0, 1]; 1 for a class that was not seen.

        Args:
            power: β; 0: all are 1.
        """
        missing = (1 - self.confidence).where(self.seen, 0).clamp(min=0)
        highest = missing.amax(0)
        return (missing / highest.where(highest > 0, 1)).pow(power).where(self.seen, 1)
