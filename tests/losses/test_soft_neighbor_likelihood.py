"""DVCL's log-likelihood with SNCLR's weights."""

import pytest
import torch
from naive_contrast import rows
from naive_distance_aware import dot, make_rows

from nnunet_dvcl.losses import DistanceAwareContrastiveLoss, soft_neighbor_likelihood


def _rows(q=6, k=4, k_out=3, c=5):
    p, near, far = (rows(*shape, seed=s).softmax(-1) for s, shape in enumerate([(q, c), (q, k, c), (q, k_out, c)]))
    return p, near, far, rows(q, k, seed=9).softmax(-1)


def test_equals_the_loops():
    p, near, far, w = _rows()
    expected = 0.0
    for i in range(6):
        expected -= sum(4 * w[i, n] * dot(p[i], near[i, n]) for n in range(4)) / 6
        expected += sum(dot(p[i], far[i, k]) for k in range(3)) / 6
    torch.testing.assert_close(soft_neighbor_likelihood(p, near, far, w), expected)


def test_equal_weights_are_the_plain_likelihood():
    p, queries, features, candidate_p = make_rows()
    plain = DistanceAwareContrastiveLoss(5, 5, 9, partition_neighbors=False, detect_outliers=False)
    found = plain.neighborhoods(features, queries)
    weights = torch.full((12, 5), 0.2, dtype=torch.float64)
    loss = soft_neighbor_likelihood(p, candidate_p[found.neighbors], candidate_p[found.outsiders], weights)
    torch.testing.assert_close(loss, plain(p, queries, features, candidate_p))


def test_gradient_flows_to_the_querys_probabilities_alone():
    p, near, far, w = (x.requires_grad_() for x in _rows())
    soft_neighbor_likelihood(p, near, far, w).backward()
    assert near.grad is far.grad is w.grad is None
    expected = (far.sum(1) - 4 * (w[..., None] * near).sum(1)).detach() / 6
    torch.testing.assert_close(p.grad, expected)


@pytest.mark.parametrize(("q", "k"), [(0, 5), (1, 0)])
def test_nothing_to_compare_is_a_zero_with_a_graph(q, k):
    p = rows(q, 3).requires_grad_()
    loss = soft_neighbor_likelihood(p, rows(q, k, 3), rows(q, k, 3), rows(q, k))
    loss.backward()
    assert loss == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_change_nothing(dtype):
    narrow = [x.to(dtype) for x in _rows()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = soft_neighbor_likelihood(*narrow)
    assert inside.dtype == torch.float32
    wide = soft_neighbor_likelihood(*(x.double() for x in narrow))
    torch.testing.assert_close(inside.double(), wide, rtol=1e-5, atol=1e-6)
