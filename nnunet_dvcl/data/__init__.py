"""Unlabeled scans: found, checked, preprocessed and loaded, with never a label read."""

from nnunet_dvcl.data.loader import (
    UnlabeledLoader,
    allowed_workers,
    divide_workers,
    start_augmenter,
    stop_augmenter,
    with_own_random_numbers,
)
from nnunet_dvcl.data.padding import have_valid_voxels, unlabeled_transforms, with_valid_voxels
from nnunet_dvcl.data.preprocess import preprocess_unlabeled
from nnunet_dvcl.data.signed_distances import AddSignedDistances, signed_distances
from nnunet_dvcl.data.unlabeled_dataset import ImageMask, NumpyDataset, UnlabeledDataset, get_unlabeled_dataset
from nnunet_dvcl.data.views import TWINS, WEAK_STRONG, View, make_views

__all__ = [
    "TWINS",
    "WEAK_STRONG",
    "AddSignedDistances",
    "ImageMask",
    "NumpyDataset",
    "UnlabeledDataset",
    "UnlabeledLoader",
    "View",
    "allowed_workers",
    "divide_workers",
    "get_unlabeled_dataset",
    "have_valid_voxels",
    "make_views",
    "preprocess_unlabeled",
    "signed_distances",
    "start_augmenter",
    "stop_augmenter",
    "unlabeled_transforms",
    "with_own_random_numbers",
    "with_valid_voxels",
]
