"""Pseudo-labels of a teacher that sees whole patches, and of a student that sees cubes of them."""

from torch import Tensor


def blend_cubes(teacher: Tensor, cubes: Tensor, classes: Tensor, shares: Tensor) -> Tensor:
    """(1 - Ω)·teacher + Ω·cubes, Ω = v_c / max_k v_k of the class c that the teacher predicts.

    Cube-wise pseudo-label blending of MagicNet (Chen et al., CVPR 2023): what a teacher takes for a large class may
    hold a small organ that it does not see; cubes show it larger.

    Args:
        teacher: its logits, [B, C, *S].
        cubes: the student's logits for cubes, put together, [B, C, *S].
        classes: c, [B, *S] int64 in [0, K).
        shares: v, [K], how often each class is a pseudo-label; all 0: nothing is known, and the teacher is followed.

    Returns:
        [B, C, *S] logits, without gradient.
    """
    highest = shares.max()
    weight = (shares / highest.where(highest > 0, 1))[classes].unsqueeze(1)
    return teacher.detach().lerp(cubes.detach(), weight.to(teacher.dtype))
