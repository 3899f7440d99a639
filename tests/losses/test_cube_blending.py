"""Logits of a teacher and of cubes, blended by how large the class is that the teacher predicts."""

import pytest
import torch

from nnunet_dvcl.losses import blend_cubes


def naive_blend(teacher, cubes, classes, shares):
    blended = torch.empty_like(teacher)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in classes.shape)).tolist():
        b, *voxel = place
        weight = float(shares[classes[tuple(place)]] / max(shares.tolist()))
        for c in range(teacher.shape[1]):
            at = (b, c, *voxel)
            blended[at] = (1 - weight) * teacher[at] + weight * cubes[at]
    return blended


@pytest.mark.parametrize("space", [(3, 4), (2, 3, 4)])
def test_equals_the_loop(space):
    teacher, cubes = torch.randn(2, 2, 3, *space, dtype=torch.float64)
    classes, shares = torch.randint(0, 3, (2, *space)), torch.tensor([0.8, 0.15, 0.05])
    given = blend_cubes(teacher, cubes, classes, shares)
    torch.testing.assert_close(given, naive_blend(teacher, cubes, classes, shares), rtol=1e-6, atol=1e-7)


def test_cubes_decide_where_the_teacher_sees_the_largest_class():
    teacher, cubes = torch.randn(1, 3, 5).requires_grad_(), torch.randn(1, 3, 5)
    classes = torch.tensor([[0, 0, 1, 1, 1]])
    given = blend_cubes(teacher, cubes, classes, torch.tensor([0.5, 0.0, 0.5]))
    torch.testing.assert_close(given[..., :2], cubes[..., :2])
    torch.testing.assert_close(given[..., 2:], teacher[..., 2:].detach())
    assert not given.requires_grad


def test_the_teacher_is_followed_while_nothing_is_known():
    teacher, cubes = torch.randn(2, 1, 3, 5).unbind()
    assert torch.equal(blend_cubes(teacher, cubes, torch.zeros(1, 5).long(), torch.zeros(3)), teacher)
