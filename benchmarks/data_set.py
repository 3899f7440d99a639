"""A preprocessed data set of synthetic cases on disk, for what needs nnU-Net's loaders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from benchmarks.compare import CPU
from benchmarks.sizes import Size
from benchmarks.synthetic import CONFIGURATION, DATASET, plans_of

NUM_CASES = 8


def write_data_set(root: Path, size: Size, ssl: dict) -> None:
    """`NUM_CASES` cases of 1.5 patches a side in fold 0, half of them without labels; fold 1 has all labels."""
    dataset = root / "preprocessed" / DATASET
    plans = plans_of(size, size.batch_size, ssl)
    plans["configurations"]["stock"] = {"inherits_from": CONFIGURATION, "batch_size": 2 * size.batch_size}
    folder = dataset / "nnUNetPlans_3d_fullres"
    folder.mkdir(parents=True)
    (root / "raw" / dataset.name).mkdir()
    del plans["continue_training"]
    (dataset / "nnUNetPlans.json").write_text(json.dumps(plans))
    classes = {"background": 0} | {f"class_{c}": c for c in range(1, size.num_classes)}
    description = {"channel_names": {"0": "MRI"}, "labels": classes, "file_ending": ".nii.gz", "numTraining": NUM_CASES}
    (dataset / "dataset.json").write_text(json.dumps(description))
    (dataset / "dataset_fingerprint.json").write_text("{}")
    cases = [f"case_{number}" for number in range(NUM_CASES)]
    for number, case in enumerate(cases):
        _write_case(folder / case, size, number)
    withheld = {"train": cases[:3], "val": cases[-1:], "unlabeled": cases[3:-1]}
    (dataset / "splits_final.json").write_text(json.dumps([withheld, {"train": cases[:-1], "val": cases[-1:]}]))


def trainer_on(trainer_class: type, root: Path, configuration: str, fold: int, device: torch.device = CPU):
    """A trainer of that data set, initialized."""
    dataset = root / "preprocessed" / DATASET
    plans = json.loads((dataset / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    trainer = trainer_class(plans, configuration, fold, json.loads((dataset / "dataset.json").read_text()), device)
    trainer.initialize()
    return trainer


def start_training(trainer_class: type, root: Path, device: torch.device):
    """A trainer in front of its first epoch, with its loaders."""
    trainer = trainer_on(trainer_class, root, CONFIGURATION, 0, device)
    trainer.on_train_start()
    return trainer


def _write_case(file: Path, size: Size, seed: int) -> None:
    shape = [8, *(n * 3 // 2 for n in size.patch_size)][-3:]  # slices, where patches have none
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, size.num_classes, *(max(n // 8, 2) for n in shape), generator=generator)
    labels = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear").argmax(1).numpy().astype(np.int16)
    image = (labels + torch.randn(labels.shape, generator=generator).numpy()).astype(np.float32)
    classes = list(range(1, size.num_classes))
    properties = {"class_locations": DefaultPreprocessor._sample_foreground_locations(labels, classes)}
    nnUNetDatasetBlosc2.save_case(image, labels, properties, str(file), chunks=image.shape, blocks=image.shape)
