"""Trainers built by hand on the tiny data set, on the CPU."""

from __future__ import annotations

import pytest
import torch

from nnunet_dvcl.data import preprocess_unlabeled

SMALL = {
    "num_epochs": 2,
    "num_iterations_per_epoch": 2,
    "num_val_iterations_per_epoch": 1,
    "seed": 0,
    "feature_dim": 8,
    "num_anchors": 16,
    "num_negatives": 8,
    "bank_capacity": 64,
    "num_queries": 32,
    "queue_capacity": 128,
    "outlier_neighbors": 20,
}


@pytest.fixture
def build_trainer(tiny_dataset):
    """``build_trainer(TrainerClass, configuration="3d_tiny", fold="all", continue_training=False, **ssl)``."""

    # in this process: a pool of workers takes seconds to start
    preprocess_unlabeled(tiny_dataset.name, "3d_fullres", num_processes=1)
    preprocess_unlabeled(tiny_dataset.name, "2d", num_processes=1)

    def build(trainer_class, configuration="3d_tiny", fold="all", continue_training=False, **ssl):
        plans = tiny_dataset.plans
        plans["configurations"][configuration]["ssl"] = SMALL | ssl
        plans["continue_training"] = continue_training
        return trainer_class(plans, configuration, fold, tiny_dataset.dataset_json, torch.device("cpu"))

    return build


@pytest.fixture
def start(build_trainer):
    """A trainer after ``on_train_start``, ready for its first epoch; its loaders are in this process."""

    def start_trainer(*args, **kwargs):
        trainer = build_trainer(*args, **kwargs)
        trainer.on_train_start()
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        return trainer

    return start_trainer
