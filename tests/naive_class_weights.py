"""Weights of classes and losses with them, as loops, straight from CLD and DHC."""

import math


def naive_power(counts: list[float], power: float) -> list[float]:
    """CLD: (max n / n_c)^α; a class without voxels counts as the rarest."""
    rarest = min(n for n in counts if n > 0)
    return [(max(counts) / (n or rarest)) ** power for n in counts]


def naive_logarithmic(counts: list[float], floor: float) -> list[float]:
    """DHC: log(max n / n_c) divided by the largest of them; here at least a floor."""
    rarest = min(n for n in counts if n > 0)
    logs = [math.log(max(counts) / (n or rarest)) for n in counts]
    return [max(x / max(logs), floor) for x in logs]


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def naive_cross_entropy(rows: list[list[float]], classes: list[int], weights: list[float]) -> float:
    """Σ w·(-log p_c) / Σ w over voxels, each with logits, a class and a weight."""
    terms = [-w * math.log(softmax(row)[c]) for row, c, w in zip(rows, classes, weights, strict=True) if w > 0]
    return sum(terms) / sum(weights)


def naive_dice_loss(p: list[list[float]], truth: list[list[bool]], weights: list[float]) -> float:
    """-Σ w_c·Dice_c / Σ w_c of one patch: p and truth are lists of voxels, each a list of classes."""
    dice = []
    for c in range(len(weights)):
        both = sum(row[c] for row, inside in zip(p, truth, strict=True) if inside[c])
        sizes = sum(row[c] for row in p) + sum(inside[c] for inside in truth)
        dice.append((2 * both + 1e-5) / (sizes + 1e-5))
    return -sum(w * d for w, d in zip(weights, dice, strict=True)) / sum(weights)
