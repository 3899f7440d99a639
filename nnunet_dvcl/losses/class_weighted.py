"""Losses with a weight for each class, and the weights that rare classes get.

A voxel makes R decisions, each for one of K classes: with labels one for one of C, with regions each in or out.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_dvcl.voxels.precision import wide_dtype

_SMOOTH = 1e-5  # nnU-Net's


def power_weights(shares: Tensor, power: float) -> Tensor:
    """(max n / n_c)^α: class weights of CLD (Lin et al., MICCAI 2022).

    Args:
        shares: n, [K, R], of the voxels; of any sum. A class that has none weighs as the rarest that has some.
        power: α; 0: equal weights.

    Returns:
        [K, R], 1 for the largest class of each decision.
    """
    return _ratios(shares).pow(power)


def logarithmic_weights(shares: Tensor, floor: float) -> Tensor:
    """log(max n / n_c) / max_k log(max n / n_k): class weights of DHC (Wang & Li, MICCAI 2023), at least a floor.

    Args:
        shares: n, [K, R], as for `power_weights`.
        floor: what the largest class weighs, to which the formula gives 0.

    Returns:
        [K, R] in [floor, 1], 1 for the rarest class of each decision.
    """
    logarithms = _ratios(shares).log()
    highest = logarithms.amax(0)
    return (logarithms / highest.where(highest > 0, 1)).clamp(min=floor)


def _ratios(shares: Tensor) -> Tensor:
    """max n / n_c, at least 1."""
    seen = shares > 0
    rarest = shares.where(seen, torch.inf).amin(0)
    return shares.amax(0).where(seen.any(0), 1) / shares.where(seen, rarest.where(seen.any(0), 1))


def of_class(values: Tensor, decided: Tensor) -> Tensor:
    """Of [K, R] the value of what each voxel decided, [B, R, *S] int64; 0 where that is -1. [B, R, *S]."""
    decision = torch.arange(values.shape[1], device=values.device).view(-1, *[1] * (decided.ndim - 2))
    return values[decided.clamp(min=0), decision].masked_fill(decided < 0, 0)


def sums_by_class(values: Tensor, decided: Tensor) -> Tensor:
    """The sum of [B, K, R, *S] over the voxels that decided so, [B, R, *S]: [K, R], in the dtype of the values."""
    of_classes = (
        value.masked_fill(decided != k, 0).transpose(0, 1).flatten(1).sum(1) for k, value in enumerate(values.unbind(1))
    )
    return torch.stack(list(of_classes))


def counts_by_class(decided: Tensor, num_classes: int) -> Tensor:
    """How many voxels of [B, R, *S] decided for each class: [K, R] int64."""
    return torch.stack([(decided == k).transpose(0, 1).flatten(1).sum(1) for k in range(num_classes)])


def weighted_cross_entropy(logits: Tensor, decided: Tensor, weights: Tensor, total: Tensor | None = None) -> Tensor:
    """Σ w·CE / Σ w.

    Args:
        logits: [B, K, R, *S]; a softmax over K makes probabilities of them.
        decided: [B, R, *S] int64 in [-1, K).
        weights: w, [B, R, *S]; 0: the voxel takes no part.
        total: [] what the sum is divided by; None: Σ w.

    Returns:
        [] at least float32; 0 where all weights are 0.
    """
    logarithms = logits.log_softmax(1, dtype=wide_dtype(logits))
    per_voxel = F.nll_loss(logarithms, decided.clamp(min=0), reduction="none").masked_fill(weights == 0, 0)
    total = weights.sum() if total is None else total
    return (per_voxel * weights).sum() / total.where(total > 0, 1)


def overlaps(probabilities: Tensor, truth: Tensor, known: Tensor | None = None) -> Tensor:
    """Σ p·y, Σ p and Σ y over the known voxels of each patch.

    Args:
        probabilities: p, [B, F, *S].
        truth: y, [B, F, *S] bool.
        known: [B, 1, *S] bool; None: all.

    Returns:
        [3, B, F] in the dtype of p.
    """
    if known is not None:
        probabilities, truth = probabilities.masked_fill(~known, 0), truth & known
    sums = (probabilities.masked_fill(~truth, 0), probabilities, truth.to(probabilities.dtype))
    return torch.stack([x.flatten(2).sum(2) for x in sums])


def soft_dice(sums: Tensor) -> Tensor:
    """nnU-Net's (2 Σ p·y + s) / (Σ p + Σ y + s) of what `overlaps` returns, or of sums of it: [3, *] -> [*]."""
    both, predicted, true = sums
    return (2 * both + _SMOOTH) / (predicted + true + _SMOOTH)


def weighted_dice_loss(sums: Tensor, weights: Tensor) -> Tensor:
    """-Σ_c w_c·Dice_c / Σ_c w_c, the mean over patches: [3, *, F] and [F] -> []."""
    return -(soft_dice(sums) * weights).sum(-1).mean() / weights.sum()
