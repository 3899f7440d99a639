"""Rows of single voxels out of a volume, and their way back: a gradient that costs no volume of zeros."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_rows(volume: Tensor, index: Tensor) -> Tensor:
    """The rows of single voxels, without a copy of the whole volume.

    The gradient of `volume` is a sparse tensor of these voxels; autograd adds it to a dense one in place. Hence
    `volume` is one that `with_dense_gradient` gave, or a leaf: nothing else can pass a sparse gradient on.

    Args:
        volume: [B, F, *S].
        index: int64 of any shape, into the B·prod(S) voxels, batch first.

    Returns:
        [*index.shape, F]; the gradient flows to the gathered voxels.
    """
    return _GatherRows.apply(volume, index)


def with_dense_gradient(volume: Tensor) -> Tensor:
    """The same volume; the sum of the gradients of all its uses goes on as a dense one."""
    return _WithDenseGradient.apply(volume)


def to_dense(gradient: Tensor) -> Tensor:
    """A gradient that may be sparse, as a dense tensor."""
    return gradient.to_dense() if gradient.is_sparse else gradient


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, volume: Tensor, index: Tensor) -> Tensor:
        ctx.shape = volume.shape
        ctx.save_for_backward(index)
        voxels = math.prod(volume.shape[2:])
        return volume.flatten(2)[index // voxels, :, index % voxels]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        patches, channels, *size = ctx.shape
        patch, *place = _unravel(index.reshape(-1, 1), [patches, *size])
        channel = torch.arange(channels, device=index.device)
        entries = torch.stack(torch.broadcast_tensors(patch, channel, *place)).flatten(1)  # [axes of volume, n * F]
        return torch.sparse_coo_tensor(entries, gradient.flatten(), ctx.shape, check_invariants=False), None


class _WithDenseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, volume: Tensor) -> Tensor:
        return volume.view_as(volume)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return to_dense(gradient)


def _unravel(index: Tensor, size: list[int]) -> list[Tensor]:
    """The place on each axis of a row-major index."""
    axes = []
    for length in reversed(size):
        axes.insert(0, index % length)
        index = index // length
    return axes
