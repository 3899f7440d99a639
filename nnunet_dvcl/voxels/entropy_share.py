"""The most uncertain share of voxels: a percentile of the entropy."""

import torch
from torch import Tensor

from nnunet_dvcl import distributed

STEPS = 4096  # of the entropy's range; two entropies within one step are equally uncertain


@torch.no_grad()
def most_uncertain(entropy: Tensor, share: float, highest: float, valid: Tensor) -> Tensor:
    """The voxels above a percentile of the entropy, of the whole batch on several ranks.

    By a histogram: no sort, and the host waits for nothing. Equally uncertain voxels are all chosen or none; so of
    entropies that are equal everywhere, as those of a new network nearly are, none is.

    Args:
        entropy: [B, *S] in nats.
        share: of the valid voxels that is chosen at most, in [0, 1].
        highest: the entropy of equal probabilities, in nats.
        valid: [B, *S] bool, the voxels that take part.

    Returns:
        [B, *S] bool.
    """
    step = (entropy / highest * STEPS).long().clamp(0, STEPS - 1)
    counts = torch.histc(step.where(valid, -1).double(), STEPS, 0, STEPS)
    of_step_and_above = distributed.total(counts).flip(0).cumsum(0).flip(0)
    chosen = of_step_and_above <= share * of_step_and_above[0]
    return chosen[step] & valid
