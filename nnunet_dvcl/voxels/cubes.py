"""Patches as magic cubes: cut into cubes, and put together again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import product

import torch
from torch import Tensor


class CubeGrid:
    """A patch cut into cubes of one size, up to a number along each axis (MagicNet, Chen et al., CVPR 2023).

    A network can run on a cube: its size is a multiple of the network's strides, and more than one voxel is left of it
    at the lowest resolution, as normalization over space needs. Where the patch is no multiple of that size, cubes
    overlap, and the voxel belongs to the last of them. A patch that is too small to be cut is one cube.

    Args:
        patch_size: *S, multiples of `strides`.
        strides: of the network, all stages together, one for each axis.
        cubes_per_axis: at most; fewer where the patch is small.
    """

    def __init__(self, patch_size: Sequence[int], strides: Sequence[int], cubes_per_axis: int):
        lowest = [size // stride for size, stride in zip(patch_size, strides, strict=True)]
        sizes = [math.ceil(units / min(cubes_per_axis, units)) for units in lowest]
        if math.prod(sizes) == 1:
            axis = max(range(len(lowest)), key=lambda a: (lowest[a], a))
            sizes[axis] = min(2, lowest[axis])
        starts = [_starts(units, size) for units, size in zip(lowest, sizes, strict=True)]
        self.patch_size, self.cubes_per_axis = tuple(patch_size), tuple(len(s) for s in starts)
        self.lowest_size = tuple(sizes)  # of a cube, at the network's lowest resolution
        self.cube_size = tuple(size * stride for size, stride in zip(sizes, strides, strict=True))
        self._starts = list(product(*([x * stride for x in s] for s, stride in zip(starts, strides, strict=True))))

    def __len__(self) -> int:
        """N, the number of cubes."""
        return len(self._starts)

    @cached_property
    def places(self) -> list[tuple[slice, ...]]:
        """Where each cube is in the patch."""
        return [tuple(slice(x, x + n) for x, n in zip(at, self.cube_size, strict=True)) for at in self._starts]

    def owners(self, device: torch.device) -> Tensor:
        """The cube that each voxel belongs to, [*S] int64."""
        owners = torch.zeros(self.patch_size, dtype=torch.int64, device=device)
        for cube, place in enumerate(self.places):
            owners[place] = cube
        return owners

    def cut(self, volume: Tensor) -> Tensor:
        """[B, C, *S] -> [B·N, C, *cube size], all cubes of a patch one after the other."""
        return torch.stack([volume[(..., *place)] for place in self.places], 1).flatten(0, 1)

    def put_together(self, cubes: Tensor) -> Tensor:
        """[B·N, C, *cube size] -> [B, C, *S], what `cut` has cut."""
        cubes = cubes.unflatten(0, (-1, len(self)))
        volume = cubes.new_empty(len(cubes), cubes.shape[2], *self.patch_size)
        for place, cube in zip(self.places, cubes.unbind(1), strict=True):
            volume[(..., *place)] = cube
        return volume


def _starts(units: int, size: int) -> list[int]:
    """Evenly spread, as few as cover all, the first at the beginning and the last at the end."""
    number = math.ceil(units / size)
    return [round(k * (units - size) / max(number - 1, 1)) for k in range(number)]


class Mixing:
    """Cubes of the same place that have changed patches: cube k of patch b is that of patch ``order[k, b]``.

    Args:
        owners: [*S] int64, the cube of each voxel.
        order: [N, B] int64, a permutation of the patches for each cube.
    """

    def __init__(self, owners: Tensor, order: Tensor):
        self._source, self._back = (x.T[:, owners] for x in (order, order.argsort(1)))

    @classmethod
    def draw(cls, owners: Tensor, num_cubes: int, num_patches: int) -> Mixing:
        """A permutation for each cube, drawn by itself."""
        return cls(owners, torch.rand(num_cubes, num_patches, device=owners.device).argsort(1))

    def mix(self, volume: Tensor) -> Tensor:
        """[B, C, *S] -> [B, C, *S]."""
        return volume.gather(0, self._source[:, None].expand_as(volume))

    def recover(self, volume: Tensor) -> Tensor:
        """The inverse of `mix`: every cube where it was, with its gradient."""
        return volume.gather(0, self._back[:, None].expand_as(volume))
