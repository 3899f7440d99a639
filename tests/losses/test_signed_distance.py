"""The error of signed distances, and their agreement with a segmentation."""

import math

import pytest
import torch

from nnunet_dvcl.losses import dual_task_consistency, signed_distance_error


def maps(space, labels=3):
    generator = torch.Generator().manual_seed(0)
    z, truth = (2 * torch.rand(2, labels, *space, generator=generator, dtype=torch.float64) - 1 for _ in range(2))
    truth[torch.rand(truth.shape, generator=generator) < 0.3] = math.nan
    return z.requires_grad_(), truth


@pytest.mark.parametrize("space", [(4, 3), (2, 3, 4)])
def test_the_error_is_the_mean_square_over_what_is_known(space):
    z, truth = maps(space)
    squares = [
        (a - b) ** 2 for a, b in zip(z.flatten().tolist(), truth.flatten().tolist(), strict=True) if not math.isnan(b)
    ]
    loss = signed_distance_error(z, truth)
    assert loss.item() == pytest.approx(sum(squares) / len(squares), rel=1e-12)
    loss.backward()
    assert torch.equal(z.grad != 0, truth.isfinite())
    assert signed_distance_error(z, truth, torch.tensor(5.0)).item() == pytest.approx(sum(squares) / 5)


def test_nothing_known_is_zero_with_a_graph():
    z, truth = maps((4, 4))
    loss = signed_distance_error(z, truth * torch.nan)
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize("steepness", [3.0, 1500.0])
@pytest.mark.parametrize("space", [(4, 3), (2, 3, 4)])
def test_consistency_equals_the_loop_over_voxels_and_labels(space, steepness):
    z = (maps(space)[0].detach() * 3 / steepness).requires_grad_()
    p = torch.rand(z.shape, dtype=torch.float64).requires_grad_()
    mask = torch.rand(2, *space) < 0.6
    total = 0.0
    for b, *voxel in mask.nonzero().tolist():
        for label in range(3):
            place = (b, label, *voxel)
            drawn = 1 / (1 + math.exp(steepness * z[place].item()))
            total += (p[place].item() - drawn) ** 2
    loss = dual_task_consistency(z, p, mask, steepness)
    assert loss.item() == pytest.approx(total / mask.sum().item(), rel=1e-9)
    loss.backward()
    for gradient in (z.grad, p.grad):
        assert torch.equal(gradient.abs().sum(1) > 0, mask)
    count = torch.tensor(5.0)
    assert dual_task_consistency(z, p, mask, steepness, count).item() == pytest.approx(total / 5)


def test_distances_that_draw_the_segmentation_cost_nothing_and_others_one_a_label():
    inside = torch.tensor([[[1.0, 0.0]]])
    everywhere = torch.ones(1, 2, dtype=torch.bool)
    z = torch.tensor([[[-0.05, 0.05]]])
    assert dual_task_consistency(z, inside, everywhere, 1500.0) == 0
    assert dual_task_consistency(-z, inside, everywhere, 1500.0) == 1
    assert dual_task_consistency(-z, inside, everywhere & False, 1500.0) == 0
