"""How hard each term of the loss pulls at the decoder's last features, beside the supervised loss."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nnunet_dvcl import distributed
from nnunet_dvcl.voxels.gathering import to_dense


def relative_gradients(
    terms: Mapping[str, Tensor], reference: Tensor, features: Sequence[Tensor], scale: float = 1.0
) -> dict[str, Tensor]:
    """The norm of each term's gradient at feature maps, divided by the norm of the reference's.

    The graph is kept: a backward pass can follow. On several ranks the norms are those of the whole batch.

    Args:
        terms: name -> [], weighted as in the total loss. Without a graph: its gradient is 0.
        reference: [], the supervised loss.
        features: feature maps, one a network; the norm is taken over all of them together.
        scale: gradients are computed of the losses times this: those of half-precision features underflow otherwise.

    Returns:
        Name -> [] float32; nan or inf where the reference has no gradient.
    """
    unit = _norm(reference, features, scale)
    return {name: _norm(value, features, scale) / unit for name, value in terms.items()}


def _norm(value: Tensor, features: Sequence[Tensor], scale: float) -> Tensor:
    gradients = ()
    if value.requires_grad:
        gradients = torch.autograd.grad(value * scale, features, retain_graph=True, allow_unused=True)
    squares = [to_dense(gradient).float().square().sum() for gradient in gradients if gradient is not None]
    own = torch.stack(squares).sum() if squares else torch.zeros((), device=value.device)
    return distributed.total(own).sqrt()
