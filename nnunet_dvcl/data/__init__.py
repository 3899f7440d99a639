"""Unlabeled scans: found, checked, preprocessed and loaded, with never a label read."""

from nnunet_dvcl.data.dataset import ImageMask, UnlabeledDataset
from nnunet_dvcl.data.loader import (
    UnlabeledLoader,
    allowed_workers,
    divide_workers,
    start_augmenter,
    stop_augmenter,
    unlabeled_transforms,
)
from nnunet_dvcl.data.preprocess import preprocess_unlabeled
from nnunet_dvcl.data.unlabeled import get_unlabeled_dataset

__all__ = [
    "ImageMask",
    "UnlabeledDataset",
    "UnlabeledLoader",
    "allowed_workers",
    "divide_workers",
    "get_unlabeled_dataset",
    "preprocess_unlabeled",
    "start_augmenter",
    "stop_augmenter",
    "unlabeled_transforms",
]
