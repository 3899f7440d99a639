"""How far each voxel of a patch is from the surface of each label, computed by the augmentation workers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import SegOnlyTransform
from scipy.ndimage import distance_transform_edt, find_objects

from nnunet_dvcl.labels import UNKNOWN, Labels


class AddSignedDistances(SegOnlyTransform):
    """The last of the training transforms: a batch's ``target`` becomes a list, and ends with the signed distances.

    Args:
        labels: what the target means.
        spacing: of the configuration, in mm, an axis each.
    """

    def __init__(self, labels: Labels, spacing: Sequence[float]):
        super().__init__()
        self.labels = labels
        self.spacing = spacing

    def _apply_to_segmentation(self, segmentation: torch.Tensor | list[torch.Tensor], **params) -> list[torch.Tensor]:
        levels = segmentation if isinstance(segmentation, list) else [segmentation]
        target = levels[0][None]
        inside, unknown = self.labels.inside(target)[0], self.labels.of_target(target)[0] == UNKNOWN
        return [*levels, torch.from_numpy(signed_distances(inside.numpy(), unknown.numpy(), self.spacing))]


def signed_distances(inside: np.ndarray, unknown: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The level set function of each label (DTC, Luo et al., AAAI 2021, Eq. 1), on a scale of its own in this patch.

    The distance between the centers of a voxel and of the nearest one on the other side of the label's surface;
    negative inside. On either side it is divided by that of the farthest voxel. A label that is absent is 1 everywhere,
    one that fills the patch -1.

    Args:
        inside: [F, *S] bool, the voxels of each label.
        unknown: [*S] bool, voxels of which no label is known; inside of none.
        spacing: in mm, an axis each.

    Returns:
        [F, *S] float32 in [-1, 1]; nan where a voxel that is not known is nearer than the other side.
    """
    to_unknown = _distance_to(unknown, spacing)
    return np.stack([_signed_distance(label, unknown, to_unknown, spacing) for label in inside])


def _signed_distance(inside, unknown, to_unknown, spacing) -> np.ndarray:
    distance = _distance_to(inside, spacing)
    if inside.any():
        # from inside, no voxel on the other side is nearer than one of the box
        box = _box_around(inside)
        outside = (~inside & ~unknown)[box]
        distance[box] = np.where(inside[box], _distance_to(outside, spacing), distance[box])
    known = distance <= to_unknown
    for side in (inside & known, ~inside & known):
        farthest = distance[side].max(initial=0)
        distance[side] = distance[side] / farthest if np.isfinite(farthest) else 1
    return np.where(known, np.where(inside, -distance, distance), np.nan).astype(np.float32)


def _distance_to(voxels: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Of each voxel to the nearest of these, in mm; infinite where there are none."""
    return distance_transform_edt(~voxels, sampling=spacing) if voxels.any() else np.full(voxels.shape, np.inf)


def _box_around(voxels: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds these voxels, wider by one on each side."""
    (box,) = find_objects(voxels.astype(np.uint8))
    return tuple(slice(max(axis.start - 1, 0), axis.stop + 1) for axis in box)
