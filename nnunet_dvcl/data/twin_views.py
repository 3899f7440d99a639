"""One patch, two views: the same geometry, and an intensity augmentation of its own for each twin network."""

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform


def twin_views(training_transforms: ComposeTransforms) -> ComposeTransforms:
    """nnU-Net's training transforms, made to give image [2 · channels, *S]: the view of A, then the view of B.

    What draws intensities is drawn for each view by itself. What moves voxels is drawn once for both: a voxel of one
    view is the same voxel of the other. In a cascade both views end with the same channels of the previous stage.
    """
    transforms = training_transforms.transforms
    first = next((i for i, t in enumerate(transforms) if _looks_at_channels(t)), len(transforms))
    cascade = next((i for i, t in enumerate(transforms) if _adds_channels(t)), len(transforms))
    each = [_EachView(t) if _looks_at_channels(t) else t for t in transforms[first:cascade]]
    shared = [*transforms[cascade:], *(_ShareLast(len(t.all_labels)) for t in transforms[cascade : cascade + 1])]
    return ComposeTransforms([*transforms[:first], _StackViews(), *each, *shared])


class _StackViews(ImageOnlyTransform):
    def _apply_to_image(self, img: torch.Tensor, **params) -> torch.Tensor:
        return torch.cat((img, img))


class _EachView(BasicTransform):
    def __init__(self, transform: BasicTransform):
        super().__init__()
        self.transform = transform

    def apply(self, data_dict: dict, **params) -> dict:
        views = [self.transform(**{**data_dict, "image": view}) for view in data_dict["image"].chunk(2)]
        return {**data_dict, "image": torch.cat([view["image"] for view in views])}


class _ShareLast(ImageOnlyTransform):
    """[A, B, last] → [A, last, B, last], with ``number`` last channels."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def _apply_to_image(self, img: torch.Tensor, **params) -> torch.Tensor:
        last = img[-self.number :]
        return torch.cat([part for view in img[: -self.number].chunk(2) for part in (view, last)])


def _adds_channels(transform: BasicTransform) -> bool:
    return isinstance(transform, MoveSegAsOneHotToDataTransform)


def _looks_at_channels(transform: BasicTransform) -> bool:
    inner = transform.transform if isinstance(transform, RandomTransform) else transform
    return isinstance(inner, (ImageOnlyTransform, MaskImageTransform))
