"""CutMix of volumes: boxes of one patch in another (Yun et al., ICCV 2019; French et al., BMVC 2020)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

SHARES = (0.05, 0.4)  # of the patch's voxels that a box has, from and to
LONGEST = 1.4  # how much longer an axis of a box may be than its patch and its share say, before the others make up


class CutMix(NamedTuple):
    """Which voxels come from which patch; the same for image, pseudo-label and mask of valid voxels."""

    box: Tensor  # [B, *S] bool, the voxels that come from the partner
    partner: Tensor  # [B] int64, another patch of the batch; itself where it is the only one

    def mix(self, volume: Tensor) -> Tensor:
        """[B, *S] or [B, channels, *S], of any dtype, with the boxes of each one's partner in it."""
        box = self.box if volume.ndim == self.box.ndim else self.box[:, None]
        return volume[self.partner].where(box, volume)


def draw_cutmix(number: int, size: tuple[int, ...], probability: float, device: torch.device) -> CutMix:
    """A box and a partner for each patch of a batch; the host waits for nothing.

    Args:
        number: B, the patches.
        size: *S.
        probability: of a patch to get a box; the others stay as they are.
        device: where all is drawn, from torch's own random numbers.
    """
    low, high = SHARES
    share = low + (high - low) * torch.rand(number, device=device)
    stretch = torch.rand(number, len(size), device=device).mul(2).sub(1).mul(math.log(LONGEST))
    relative = (share.log()[:, None] / len(size) + stretch - stretch.mean(1, keepdim=True)).exp()
    box = (torch.rand(number, device=device) < probability).view(-1, *[1] * len(size))
    for axis, voxels in enumerate(size):
        length = (relative[:, axis] * voxels).round().clamp(1, voxels)
        start = (torch.rand(number, device=device) * (voxels - length + 1)).floor()
        place = torch.arange(voxels, device=device)
        inside = (place >= start[:, None]) & (place < (start + length)[:, None])
        box = box & inside.view(number, *(voxels if a == axis else 1 for a in range(len(size))))
    order = torch.rand(number, device=device).argsort()
    return CutMix(box, torch.empty_like(order).scatter_(0, order, order.roll(1)))
