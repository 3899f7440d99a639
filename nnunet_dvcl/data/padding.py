"""Which voxels of a patch are no part of an image: nnU-Net's transforms turn them into background."""

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

from nnunet_dvcl.errors import UserError


def with_valid_voxels(training_transforms: ComposeTransforms) -> ComposeTransforms:
    """nnU-Net's training transforms for labeled patches, whose ``target`` becomes a list and ends with a mask.

    The mask is [B, 1, *S] bool, False where a voxel is padding or outside of the image. In what comes before it, one
    tensor a level of deep supervision, such a voxel is background, as ever.

    Raises:
        UserError: nothing in these transforms turns padding into background.
    """
    transforms = training_transforms.transforms
    removal = next((i for i, t in enumerate(transforms) if _removes_padding(t)), None)
    if removal is None:
        raise UserError(
            "These training transforms leave padding as it is: expected RemoveLabelTransform(-1, 0) of "
            "batchgeneratorsv2 among them, as in nnU-Net's own."
        )
    return ComposeTransforms([*transforms[:removal], _KeepValid(), *transforms[removal:], _AddValid()])


def have_valid_voxels(transforms: ComposeTransforms) -> bool:
    """Whether they come from `with_valid_voxels`."""
    return any(isinstance(t, _AddValid) for t in transforms.transforms)


def unlabeled_transforms(training_transforms: ComposeTransforms) -> ComposeTransforms:
    """nnU-Net's training transforms, less the one that turns padding (-1) into background (0).

    Made by ``trainer.get_training_transforms`` with ``deep_supervision_scales=None, regions=None``. In a cascade they
    move the previous stage's segmentation into the image, a channel each label, and padding has none of the labels.
    """
    left_out = (_KeepValid, _AddValid)  # the target of an unlabeled patch is the mask
    transforms = training_transforms.transforms
    return ComposeTransforms([t for t in transforms if not (_removes_padding(t) or isinstance(t, left_out))])


class _KeepValid(BasicTransform):
    def apply(self, data_dict: dict, **params) -> dict:
        return {**data_dict, "valid": data_dict["segmentation"][:1] >= 0}


class _AddValid(BasicTransform):
    def apply(self, data_dict: dict, **params) -> dict:
        target = data_dict["segmentation"]
        levels = target if isinstance(target, list) else [target]
        return {**data_dict, "segmentation": [*levels, data_dict["valid"]]}


def _removes_padding(transform: BasicTransform) -> bool:
    return isinstance(transform, RemoveLabelTansform) and transform.label_value == -1
