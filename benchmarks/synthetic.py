"""Trainers on synthetic patches: nnU-Net's own set-up from plans, without a data set or a loader."""

from __future__ import annotations

import itertools
import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.sizes import Size
from nnunet_dvcl.trainers import nnUNetTrainerDVCL_SameView

CONFIGURATION = "3d_fullres"
DATASET = "Dataset900_Synthetic"


@contextmanager
def empty_folders():
    """nnU-Net's three folders, empty, for as long as the block lasts."""
    with TemporaryDirectory() as root:
        folders = {f"nnUNet_{name}": f"{root}/{name}" for name in ("raw", "preprocessed", "results")}
        for folder in folders.values():
            Path(folder).mkdir()
        with mock.patch.dict(os.environ, folders):
            yield Path(root)


def plans_of(size: Size, batch_size: int, ssl: dict) -> dict:
    """What nnU-Net's planner would write for a network of this size; a plain U-Net with two convolutions a stage."""
    stages, dimensions = len(size.features), len(size.patch_size)
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(size.features),
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [[3] * dimensions] * stages,
            "strides": [list(stride) for stride in size.strides],
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch_size,
        "patch_size": list(size.patch_size),
        "spacing": [1.0] * dimensions,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "architecture": architecture,
        "batch_dice": False,
        "ssl": ssl,
    }
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {CONFIGURATION: configuration},
        "continue_training": False,
    }


def start_trainer(trainer_class: type, size: Size, device: torch.device, batch_size: int | None = None, **ssl):
    """A trainer in the middle of an epoch, with one synthetic batch for the unlabeled stream for ever."""
    dataset_json = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0} | {f"class_{c}": c for c in range(1, size.num_classes)},
        "file_ending": ".nii.gz",
        "numTraining": 1,
    }
    plans = plans_of(size, batch_size or size.batch_size, {"seed": 0} | ssl)
    preprocessed = Path(os.environ["nnUNet_preprocessed"], DATASET, "nnUNetPlans_3d_fullres")
    preprocessed.mkdir(parents=True, exist_ok=True)
    (preprocessed / "none.b2nd").touch()  # by its ending nnU-Net knows the file format
    trainer = trainer_class(plans, CONFIGURATION, 0, dataset_json, device)
    trainer.initialize()
    trainer.on_train_epoch_start()
    if hasattr(trainer, "config"):
        trainer.dataloader_unlabeled = itertools.repeat(unlabeled_batch(size, num_views(trainer)))
    return trainer


def num_views(trainer) -> int:
    """How many views of a patch the trainer takes, one after the other among the channels."""
    return 2 if getattr(trainer.config, "views", "same") == "weak_strong" else 1


def labeled_batch(size: Size, batch_size: int, scales: list[tuple[float, ...]], views: int = 1) -> dict:
    """``data`` [B, views, *S] and ``target``: [B, 1, *S'] over the scales of deep supervision, and the valid voxels."""
    image, label_map = phantom(size, batch_size)
    target = [F.interpolate(label_map.float(), scale_factor=tuple(scale), mode="nearest") for scale in scales]
    keys = ["phantom"] * batch_size
    return {
        "data": image.repeat_interleave(views, 1),
        "target": [*(level.to(torch.int16) for level in target), torch.ones_like(label_map, dtype=torch.bool)],
        "keys": keys,
    }


def unlabeled_batch(size: Size, views: int = 1) -> dict:
    image, label_map = phantom(size, size.batch_size)
    return {"data": image.repeat_interleave(views, 1), "target": torch.zeros_like(label_map, dtype=torch.int16)}


def phantom(size: Size, batch_size: int) -> tuple[Tensor, Tensor]:
    """Blobs of every class, and an image in which each class has its own brightness under noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch_size, size.num_classes, *(max(n // 8, 2) for n in size.patch_size), generator=generator)
    mode = "trilinear" if len(size.patch_size) == 3 else "bilinear"
    label_map = F.interpolate(coarse, size=size.patch_size, mode=mode).argmax(1, keepdim=True)
    noise = torch.randn(label_map.shape, generator=generator)
    return label_map / size.num_classes + 0.3 * noise, label_map


def with_full_queue(trainer: nnUNetTrainerDVCL_SameView) -> nnUNetTrainerDVCL_SameView:
    """As it is after the first steps of a training: with as many candidates as there will ever be."""
    queue = trainer.memory["queue"]
    generator = torch.Generator().manual_seed(0)
    widths = {"features": trainer.config.feature_dim, "probabilities": trainer.labels.width}
    rows = {part: torch.rand(queue.capacity, width, generator=generator) for part, width in widths.items()}
    queue.push(**{part: values.to(trainer.device) for part, values in rows.items()})
    return trainer
