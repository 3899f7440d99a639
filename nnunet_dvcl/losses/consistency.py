"""What a mean teacher asks of its student: the same prediction."""

from torch import Tensor

from nnunet_dvcl.losses.masked_mean import masked_mean


def consistency(student: Tensor, teacher: Tensor, mask: Tensor, count: Tensor | None = None) -> Tensor:
    """½‖p − q‖², the distance of two predictions (Tarvainen & Valpola, NeurIPS 2017, Eq. 1).

    The half makes it the mean squared error over classes where there are two, and 1 at most whatever their number.

    Args:
        student: p, [B, K, *S], sums to 1 over K.
        teacher: q, [B, K, *S], without gradient.
        mask: [B, *S] bool, the voxels that are compared.
        count: [] what the sum is divided by; None: the number of these voxels.

    Returns:
        [] the mean over these voxels, in [0, 1]; 0 where there is none.
    """
    return masked_mean((student - teacher.detach()).square().sum(1) / 2, mask, count)
