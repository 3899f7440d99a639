"""Which voxels take part: the entropy split (ESM) and draws of voxels."""

from collections.abc import Callable

import torch
from torch import Tensor

from nnunet_dvcl.voxels.topk import topk


@torch.no_grad()
def split_by_entropy(
    entropy: Tensor,
    alpha: float = 0.5,
    valid: Tensor | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy-based selection (ESM): τ = mean(e) + α·std(e) over the valid voxels of one network, DVCL, Eq. 5-6.

    O(N), no sort. A tie e = τ is reliable.

    Args:
        entropy: [B, *S] in nats.
        alpha: α.
        valid: [B, *S] bool, False where padding was added: such voxels are in neither mask and not in τ.
        reduce: sums a tensor over the processes that share a batch (`nnunet_dvcl.distributed.total`): τ is then that
            of the whole batch. None: this is the whole batch.

    Returns:
        reliable and unreliable, [B, *S] bool each, and the threshold τ, [] (0 where no voxel is valid).
    """
    entropy = entropy.to(torch.promote_types(entropy.dtype, torch.float32))
    valid = torch.ones_like(entropy, dtype=torch.bool) if valid is None else valid
    reduce = reduce or (lambda sums: sums)
    # float64: a float32 sum of equal entropies can round τ below them, and the tie would be lost
    own = entropy.masked_fill(~valid, 0.0).sum(dtype=torch.float64)
    total, count = reduce(torch.stack((own, valid.sum().double())))
    count = count.clamp(min=1)
    mean = total / count
    variance = reduce((entropy - mean).square().masked_fill(~valid, 0.0).sum(dtype=torch.float64)) / count
    threshold = (mean + alpha * variance.sqrt()).to(entropy.dtype)
    reliable = entropy <= threshold
    return reliable & valid, ~reliable & valid, threshold


@torch.no_grad()
def draw_per_class(
    classes: Tensor,
    num_classes: int,
    per_class: int,
    generator: torch.Generator | None = None,
    places: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Up to M random voxels of each class, uniformly and without replacement.

    Linear in N and with a fixed amount of sorting: each voxel gets a random key scaled by the size of its class, so
    that the M-th smallest key of every class lies near M, and the few smallest keys overall hold all the draws.

    Args:
        classes: [N] int64 in [-1, C); class -1 is never drawn.
        num_classes: C.
        per_class: M.
        generator: torch's random generator on the device of `classes`.
        places: the place of each key of [C, M], row by row, among those of all processes that share a batch
            (`nnunet_dvcl.distributed.places`). The M of a class are then drawn from the voxels of all processes; each
            gets those that are its own, and no two get the same place. None: this is the whole batch.

    Returns:
        index [C, M] int64 into `classes` and mask [C, M] bool; where the mask is False the index is 0.
    """
    index, keys = _draw_keys(classes, num_classes, per_class, generator)
    if places is None:
        return index, keys.isfinite()
    place = places(keys)
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
    sizes = torch.zeros(num_classes + 1, dtype=keys.dtype, device=device)
    sizes.scatter_add_(0, shifted, keys.new_ones(()).expand_as(keys))
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


@torch.no_grad()
def draw_voxels(
    mask: Tensor,
    count: int,
    generator: torch.Generator | None = None,
    places: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Up to `count` random True entries, uniformly and without replacement.

    Args:
        mask: bool, any shape.
        count: the number of entries wanted.
        generator: torch's random generator on the device of `mask`.
        places: as in `draw_per_class`.

    Returns:
        index [count] int64 into the flattened mask and drawn [count] bool; where that is False the index is 0.
    """
    index, drawn = draw_per_class(mask.flatten().long() - 1, 1, count, generator, places)
    return index[0], drawn[0]
