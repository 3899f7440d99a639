"""Random voxels, uniformly and without replacement."""

import torch
from torch import Tensor

from nnunet_dvcl import distributed
from nnunet_dvcl.voxels.topk import topk


@torch.no_grad()
def draw_per_class(
    classes: Tensor,
    num_classes: int,
    per_class: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Up to M random voxels of each class, uniformly and without replacement.

    Linear in N and with a fixed amount of sorting: each voxel gets a random key scaled by the size of its class, so
    that the M-th smallest key of every class lies near M, and the few smallest keys overall hold all the draws.

    On several ranks the M of a class are drawn from the voxels of all of them. Each gets those that are its own, and no
    two get the same place (`nnunet_dvcl.distributed.merge_rows` puts them together).

    Args:
        classes: [N] int64 in [-1, C); class -1 is never drawn.
        num_classes: C.
        per_class: M.
        generator: torch's random generator on the device of `classes`.

    Returns:
        index [C, M] int64 into `classes` and mask [C, M] bool; where the mask is False the index is 0.
    """
    index, keys = _draw_keys(classes, num_classes, per_class, generator)
    if distributed.world_size() == 1:
        return index, keys.isfinite()
    place = distributed.order_over_ranks(keys)
    # what is not drawn goes into a column that is cut off
    place = place.where(keys.isfinite() & (place < per_class), per_class)
    in_place = index.new_zeros(num_classes, per_class + 1)
    mask = torch.zeros_like(in_place, dtype=torch.bool)
    return in_place.scatter(1, place, index)[:, :per_class], mask.scatter(1, place, True)[:, :per_class]


def _draw_keys(
    classes: Tensor, num_classes: int, per_class: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """The M voxels of each class with the smallest keys, each uniform in [0, 1) and independent of the others.

    Returns:
        index [C, M] int64 and keys [C, M] float64, ascending; 0 and inf where a class has fewer voxels.
    """
    device = classes.device
    # one class and one place more, for all that is not drawn: they are cut off
    index = torch.zeros(num_classes + 1, per_class + 1, dtype=torch.int64, device=device)
    smallest = torch.full(index.shape, torch.inf, dtype=torch.float64, device=device)
    if classes.numel() == 0:
        return index[:-1, :-1], smallest[:-1, :-1]

    shifted = classes + 1
    # float64: N · 2^-24, the step of a scaled float32 key, would tie the voxels of a large class
    keys = torch.rand(classes.shape, dtype=torch.float64, device=device, generator=generator)
    sizes = _count(shifted, num_classes + 1).to(keys.dtype)
    sizes[0] = torch.finfo(keys.dtype).max  # far behind all others; inf would make nan of a key of 0
    keys *= sizes.index_select(0, shifted)  # several times faster than sizes[shifted]

    # the M-th smallest of n scaled keys is Gamma(M)-distributed: beyond 2M + 32 with a chance below 1e-12
    few = min(num_classes * (2 * per_class + 32), classes.numel())
    keys, voxels = topk(keys, few, largest=False)
    drawn = classes[voxels]  # [few]
    one_hot = drawn[:, None] == torch.arange(num_classes, device=device)  # [few, C]
    place = (one_hot.cumsum(0) - 1).gather(1, drawn.clamp(min=0)[:, None])[:, 0]  # rank by key within the class
    taken = (drawn >= 0) & (place < per_class)
    drawn, place = drawn.where(taken, num_classes), place.where(taken, per_class)
    index[drawn, place] = voxels.where(taken, 0)
    smallest[drawn, place] = keys / sizes[shifted[voxels]]
    return index[:-1, :-1], smallest[:-1, :-1]


def _count(values: Tensor, number: int) -> Tensor:
    """How often each of the values 0 to number - 1 occurs, [number]."""
    if values.device.type == "cpu":
        return torch.bincount(values, minlength=number)  # several times faster; a GPU's host would have to wait
    # a histogram: to add ones into a handful of places, the threads of a GPU would wait in line
    return torch.histc(values.double(), number, 0, number)


@torch.no_grad()
def draw_voxels(
    mask: Tensor,
    count: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Up to `count` random True entries, uniformly and without replacement; on several ranks as in `draw_per_class`.

    Args:
        mask: bool, any shape.
        count: the number of entries wanted.
        generator: torch's random generator on the device of `mask`.

    Returns:
        index [count] int64 into the flattened mask and drawn [count] bool; where that is False the index is 0.
    """
    index, drawn = draw_per_class(mask.flatten().long() - 1, 1, count, generator)
    return index[0], drawn[0]
