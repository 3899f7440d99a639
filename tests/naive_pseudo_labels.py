"""Pseudo-labels as loops, straight from the paper: cross pseudo supervision (Eq. 2), entropy split (Eq. 4-6)."""

import math

import torch


def naive_cps(a: torch.Tensor, b: torch.Tensor, valid: torch.Tensor) -> float:
    classes = a.shape[1]
    rows_a, rows_b = (x.movedim(1, -1).reshape(-1, classes).tolist() for x in (a, b))
    total, count = 0.0, 0
    for row_a, row_b, is_valid in zip(rows_a, rows_b, valid.reshape(-1).tolist(), strict=True):
        if is_valid:
            for student, teacher in ((row_a, row_b), (row_b, row_a)):
                label = max(range(classes), key=lambda c, teacher=teacher: teacher[c])
                total += math.log(sum(math.exp(x) for x in student)) - student[label]
            count += 1
    return total / count


def naive_cps_of_regions(a: torch.Tensor, b: torch.Tensor, valid: torch.Tensor) -> float:
    """BCE of nested regions, [[1, 2], [2]], against the label that the other network's regions paint."""
    rows_a, rows_b = (x.movedim(1, -1).reshape(-1, 2).tolist() for x in (a, b))
    total, count = 0.0, 0
    for row_a, row_b, is_valid in zip(rows_a, rows_b, valid.reshape(-1).tolist(), strict=True):
        if is_valid:
            for student, teacher in ((row_a, row_b), (row_b, row_a)):
                label = 2 if teacher[1] > 0 else 1 if teacher[0] > 0 else 0
                for x, inside in zip(student, (label >= 1, label == 2), strict=True):
                    total += math.log(1 + math.exp(-x if inside else x)) / 2
            count += 1
    return total / count


def random_logits(space, classes=5, dtype=torch.float64):
    torch.manual_seed(1)
    a, b = (torch.randn(2, classes, *space, dtype=dtype).mul(3).requires_grad_() for _ in range(2))
    return a, b, torch.rand(2, *space) < 0.6


def naive_entropy(p: list[float]) -> float:
    return sum(-x * math.log(x) for x in p if x > 0)


def naive_split(entropy: list[float], valid: list[bool], alpha: float):
    inside = [e for e, v in zip(entropy, valid, strict=True) if v]
    average = sum(inside) / len(inside)
    deviation = math.sqrt(sum((e - average) ** 2 for e in inside) / len(inside))
    threshold = average + alpha * deviation
    reliable = [v and e <= threshold for e, v in zip(entropy, valid, strict=True)]
    unreliable = [v and e > threshold for e, v in zip(entropy, valid, strict=True)]
    return reliable, unreliable, threshold
