"""The distance of a student's prediction from a teacher's."""

import pytest
import torch

from nnunet_dvcl.losses import consistency


def predictions(space, classes=4, seed=0):
    """Student with a graph, teacher, and which voxels are compared."""
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(2, classes, *space, generator=generator, dtype=torch.float64).softmax(1) for _ in range(2))
    return p.requires_grad_(), q, torch.rand(2, *space, generator=generator) < 0.6


def naive_consistency(p, q, mask) -> float:
    total, count = 0.0, 0
    for place in torch.cartesian_prod(*(torch.arange(n) for n in mask.shape)).tolist():
        if mask[tuple(place)]:
            b, *voxel = place
            total += sum(float(p[(b, c, *voxel)] - q[(b, c, *voxel)]) ** 2 for c in range(p.shape[1])) / 2
            count += 1
    return total / count


@pytest.mark.parametrize("space", [(4, 3), (2, 3, 4), (2, 1, 3, 2)])
def test_equals_the_loop_over_voxels_and_classes(space):
    p, q, mask = predictions(space)
    assert consistency(p, q, mask).item() == pytest.approx(naive_consistency(p.detach(), q, mask), rel=1e-12)


def test_is_the_mean_squared_error_of_two_classes_and_never_above_one():
    p, q, mask = predictions((5, 5), classes=2)
    everywhere = torch.ones_like(mask)
    torch.testing.assert_close(consistency(p, q, everywhere), torch.nn.functional.mse_loss(p, q))
    for classes in (2, 3, 14):
        certain = torch.eye(classes)[None, :2].transpose(1, 2)  # two voxels, two different classes
        assert consistency(certain, certain.flip(2), torch.ones(1, 2, dtype=torch.bool)) == 1


def test_the_gradient_reaches_the_student_alone_and_only_what_is_compared():
    p, q, mask = predictions((4, 4))
    q.requires_grad_()
    consistency(p, q, mask).backward()
    torch.testing.assert_close(p.grad, (p - q).detach() * mask[:, None] / mask.sum())
    assert q.grad is None


def test_another_count_and_no_voxel():
    p, q, mask = predictions((4, 4))
    whole = consistency(p, q, mask)
    torch.testing.assert_close(consistency(p, q, mask, torch.tensor(7.0)), whole * mask.sum() / 7)
    nothing = consistency(p * torch.nan, q, torch.zeros_like(mask))
    assert nothing.item() == 0
    nothing.backward()
