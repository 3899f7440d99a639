"""The sizes that the benchmarks know by name."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """A configuration of nnU-Net: one U-Net, one patch size, B_l labeled and as many unlabeled patches."""

    name: str
    patch_size: tuple[int, ...]
    batch_size: int
    num_classes: int
    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    repeats: int

    @property
    def voxels(self) -> int:
        """Of one patch."""
        return math.prod(self.patch_size)


_HALF, _HALF_2D = (2, 2, 2), (2, 2)
SIZES = {
    size.name: size
    for size in (
        Size("tiny", (16, 16, 16), 2, 3, (4, 8, 16), ((1, 1, 1), _HALF, _HALF), 3),
        # Dataset004_Hippocampus as nnU-Net plans it, with fewer features and a smaller batch
        Size("hippocampus", (40, 56, 40), 2, 3, (8, 16, 32, 64), ((1, 1, 1), _HALF, _HALF, _HALF), 10),
        # the 2d configuration of experiments/acdc
        Size("acdc", (96, 96), 6, 4, (8, 16, 32, 64, 64), ((1, 1), *[_HALF_2D] * 4), 5),
        # the paper's network, patch and batch on FLARE 2022
        Size(
            "flare",
            (64, 128, 128),
            2,
            14,
            (16, 32, 64, 128, 256),
            ((1, 1, 1), _HALF, _HALF, _HALF, _HALF),
            3,
        ),
    )
}
