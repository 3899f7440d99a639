"""Unlabeled scans: found, checked, preprocessed and loaded, with never a label read."""

from nnunet_dvcl.data.loader import (
    UnlabeledLoader,
    allowed_workers,
    divide_workers,
    start_augmenter,
    stop_augmenter,
    unlabeled_transforms,
)
from nnunet_dvcl.data.preprocess import preprocess_unlabeled
from nnunet_dvcl.data.twin_views import twin_views
from nnunet_dvcl.data.unlabeled import get_unlabeled_dataset
from nnunet_dvcl.data.unlabeled_dataset import ImageMask, NumpyDataset, UnlabeledDataset

__all__ = [
    "ImageMask",
    "NumpyDataset",
    "UnlabeledDataset",
    "UnlabeledLoader",
    "allowed_workers",
    "divide_workers",
    "get_unlabeled_dataset",
    "preprocess_unlabeled",
    "start_augmenter",
    "stop_augmenter",
    "twin_views",
    "unlabeled_transforms",
]
