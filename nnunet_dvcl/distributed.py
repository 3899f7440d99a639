"""One training on several ranks (GPUs): the arithmetic that makes their parts of the batch one batch.

DistributedDataParallel averages the gradients of the ranks. A loss has the gradient of the whole batch, whatever the
number of ranks, when it

- divides a rank's own sum by the `mean` over the ranks of what is counted, or
- is computed of the rows of all ranks, which `merge_rows` collects with their gradient, or of sums that `merge_sums`
  adds up.

Every rank has to call these functions equally often and in the same order. Without a process group, and inside of
`single_rank`, there is one rank, and nothing is communicated.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def single_rank() -> Iterator[None]:
    """A block in which each rank computes for itself, as if it were the only one."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def _several() -> bool:
    return not _alone.get() and dist.is_available() and dist.is_initialized()


def world_size() -> int:
    return dist.get_world_size() if _several() else 1


def rank() -> int:
    return dist.get_rank() if _several() else 0


def local_batch_size(size: int) -> int:
    """This rank's part of a batch, as nnU-Net divides it: the first ranks take one more where it does not come out."""
    return size // world_size() + (rank() < size % world_size())


@torch.no_grad()
def total(values: Tensor) -> Tensor:
    """The sum over the ranks, without gradient."""
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


def merge_sums(values: Tensor) -> Tensor:
    """The sum over the ranks, with the gradient of a loss that every rank computes of it."""
    return values if world_size() == 1 else _Sum.apply(values)


def mean(values: Tensor) -> Tensor:
    """The mean over the ranks, without gradient; float64 where there are several."""
    return values if world_size() == 1 else total(values.double()) / world_size()


def gather(values: Tensor) -> Tensor:
    """The values of each rank, one after the other, without gradient: [*S] -> [ranks, *S]; the same shape on each."""
    if world_size() == 1:
        return values[None]
    gathered = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(gathered, values.contiguous())
    return torch.stack(gathered)


def barrier() -> None:
    """Waits until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def gather_objects(value: Any) -> list[Any]:
    """What each rank gives, in their order."""
    gathered = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(gathered, value)
    return gathered


def order_over_ranks(keys: Tensor) -> Tensor:
    """Where each key stands in the ascending order of the keys of all ranks, row by row: [C, M] -> [C, M] int64."""
    everyone = gather(keys)  # [ranks, C, M]
    order = everyone.transpose(0, 1).flatten(1).argsort(dim=1, stable=True)
    return order.argsort(1).unflatten(1, (world_size(), -1))[:, rank()]


def merge_rows(rows: Tensor, is_local: Tensor) -> tuple[Tensor, Tensor]:
    """One table of rows, of which each rank has some: those of all ranks are put together.

    Args:
        rows: [*S, d] floating.
        is_local: [*S] bool, the places whose rows are this rank's; on no two ranks the same (`order_over_ranks`).

    Returns:
        The rows of all ranks, [*S, d] with gradient, and which places have one, [*S] bool; the same on every rank.
    """
    if world_size() == 1:
        return rows, is_local
    own = torch.cat((rows, torch.ones_like(rows[..., :1])), -1).masked_fill(~is_local[..., None], 0.0)
    table = _Sum.apply(own)
    return table[..., :-1], table[..., -1].detach() > 0.5


def own_device(device: torch.device) -> torch.device:
    """The GPU that was chosen by ``torch.cuda.set_device`` when the process began, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device


def wrap(module: nn.Module, device: torch.device) -> DistributedDataParallel:
    """DistributedDataParallel as nnU-Net wraps its network, for a GPU or the CPU; starts with the weights of rank 0."""
    module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return DistributedDataParallel(module, device_ids=None if device.type == "cpu" else [device.index])


class _Sum(torch.autograd.Function):
    """The sum over the ranks.

    Each rank computes a loss of the sum; together they ask `world_size` times for its gradient, and that is undone by
    the mean that DistributedDataParallel takes.
    """

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        return total(values.contiguous())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return total(gradient.contiguous())
