"""One patch, several views: the same geometry, and intensities of its own for each."""

from collections.abc import Sequence
from enum import Enum

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform


class View(Enum):
    """How a patch is augmented. Both have nnU-Net's scaling, rotation and mirroring, drawn once for all views."""

    WEAK = "geometry alone"
    STRONG = "geometry, and nnU-Net's intensities, drawn for this view alone"


TWINS = (View.STRONG, View.STRONG)
WEAK_STRONG = (View.WEAK, View.STRONG)


def make_views(training_transforms: ComposeTransforms, views: Sequence[View]) -> ComposeTransforms:
    """nnU-Net's training transforms, made to give image [views · channels, *S]: one view after the other.

    What moves voxels is drawn once: a voxel of one view is the same voxel of the others. What is outside of the image
    is masked in each view. In a cascade each view ends with the same channels of the previous stage.

    Args:
        training_transforms: of the labeled or of the unlabeled patches.
        views: what each is to be.
    """
    transforms = training_transforms.transforms
    first = next((i for i, t in enumerate(transforms) if _looks_at_channels(t)), len(transforms))
    cascade = next((i for i, t in enumerate(transforms) if _adds_channels(t)), len(transforms))
    each = [_EachView(t, views) if _looks_at_channels(t) else t for t in transforms[first:cascade]]
    shared = [
        *transforms[cascade:],
        *(_ShareLast(len(views), len(t.all_labels)) for t in transforms[cascade : cascade + 1]),
    ]
    return ComposeTransforms([*transforms[:first], _StackViews(len(views)), *each, *shared])


class _StackViews(ImageOnlyTransform):
    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def _apply_to_image(self, img: torch.Tensor, **params) -> torch.Tensor:
        return torch.cat([img] * self.number)


class _EachView(BasicTransform):
    """Draws for each view by itself; intensities for strong ones only."""

    def __init__(self, transform: BasicTransform, views: Sequence[View]):
        super().__init__()
        self.transform = transform
        self.takes_part = [view is View.STRONG or _masks(transform) for view in views]

    def apply(self, data_dict: dict, **params) -> dict:
        parts = data_dict["image"].chunk(len(self.takes_part))
        changed = [
            self.transform(**{**data_dict, "image": part})["image"] if takes_part else part
            for part, takes_part in zip(parts, self.takes_part, strict=True)
        ]
        return {**data_dict, "image": torch.cat(changed)}


class _ShareLast(ImageOnlyTransform):
    """[A, B, ..., last] → [A, last, B, last, ...], with ``number`` last channels."""

    def __init__(self, num_views: int, number: int):
        super().__init__()
        self.num_views = num_views
        self.number = number

    def _apply_to_image(self, img: torch.Tensor, **params) -> torch.Tensor:
        last = img[-self.number :]
        return torch.cat([part for view in img[: -self.number].chunk(self.num_views) for part in (view, last)])


def _adds_channels(transform: BasicTransform) -> bool:
    return isinstance(transform, MoveSegAsOneHotToDataTransform)


def _masks(transform: BasicTransform) -> bool:
    return isinstance(transform, MaskImageTransform)


def _looks_at_channels(transform: BasicTransform) -> bool:
    inner = transform.transform if isinstance(transform, RandomTransform) else transform
    return isinstance(inner, ImageOnlyTransform) or _masks(inner)
