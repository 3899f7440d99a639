"""What an unreliable voxel is not: ranks of classes, with few and with many of them."""

import pytest
import torch
from naive_contrast import rows

from nnunet_dvcl.losses import negative_classes


def _naive(p, truth, low, high):
    """U2PL's indicators, class by class: n^u = 1[r_l <= rank < r_h] and n^l = 1[rank < r_l]·1[y != c]."""
    low = max(1, min(low, len(p) - 2))
    by_probability = sorted(range(len(p)), key=lambda c: -p[c])
    if truth is None:
        return [low <= by_probability.index(c) < high for c in range(len(p))]
    return [by_probability.index(c) < low and c != truth for c in range(len(p))]


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize("c", [2, 3, 4, 5, 14, 25])
def test_equals_the_loops(c, labeled):
    p = rows(50, c).softmax(-1)
    truth = torch.arange(50) % c if labeled else None
    expected = [
        _naive(q, y, 3, 20) for q, y in zip(p.tolist(), truth.tolist() if labeled else [None] * 50, strict=True)
    ]
    assert negative_classes(p, truth).tolist() == expected


@pytest.mark.parametrize(("c", "of_unlabeled", "of_labeled"), [(2, 1, 1), (3, 2, 1), (4, 2, 2), (14, 11, 3)])
def test_few_classes_leave_negatives(c, of_unlabeled, of_labeled):
    """How many of its classes push away from a voxel: an unlabeled one, and a labeled one that is taken for another."""
    p = torch.linspace(2, 0, c, dtype=torch.float64).softmax(0)[None]
    assert negative_classes(p).sum() == of_unlabeled
    least_likely = torch.tensor([c - 1])
    assert negative_classes(p, least_likely).sum() == of_labeled


def test_no_voxel_is_a_negative_of_what_it_is():
    p = rows(200, 5).softmax(-1)
    truth = torch.arange(200) % 5
    assert not negative_classes(p, truth).gather(1, truth[:, None]).any()
    assert not negative_classes(p).gather(1, p.argmax(1)[:, None]).any()
