"""A cascade from its first stage to a prediction: what each stage leaves for the next, and what it needs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from conftest import threads_for_processes
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dvcl.data import ImageMask
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.next_stage import predict_next_stage
from nnunet_dvcl.plots.features import plot_features
from nnunet_dvcl.trainers import nnUNetTrainerCPS, nnUNetTrainerDVCL, nnUNetTrainerSSL, nnUNetTrainerSupervised

LABELED, WITHHELD, SCANS = ["case_0", "case_1", "case_2", "case_5"], ["case_3", "case_4"], ["scan_0", "scan_1", "scan_2"]
FOLD_0 = {"train": LABELED[:3], "val": LABELED[3:], "unlabeled": WITHHELD}
FOLD_1 = {"train": ["case_3", "case_5"], "val": LABELED[:3]}


@pytest.fixture
def tiny(cascade_dataset, monkeypatch):
    cascade_dataset.write_splits(FOLD_0, FOLD_1)
    monkeypatch.setattr(nnUNetTrainerSSL, "_num_processes", 1)
    return cascade_dataset


@pytest.fixture
def train(tiny, build_trainer):
    """``train("3d_lowres_tiny", fold)``: a finished training with its final validation."""

    def run(configuration, fold=0, trainer_class=nnUNetTrainerDVCL, **ssl):
        trainer = build_trainer(trainer_class, configuration, fold, num_epochs=1, **ssl)
        trainer.run_training()
        with threads_for_processes():
            trainer.perform_actual_validation()
        return trainer

    return run


def model(tiny, configuration="3d_lowres_tiny", trainer="nnUNetTrainerDVCL") -> Path:
    return tiny.results / tiny.name / f"{trainer}__nnUNetPlans__{configuration}"


def of_labeled(tiny) -> Path:
    return model(tiny) / "predicted_next_stage/cascade_tiny"


def of_unlabeled(tiny, fold=0) -> Path:
    return model(tiny) / f"fold_{fold}/predicted_next_stage/cascade_tiny"



def test_from_the_first_stage_to_a_prediction(train, tiny, build_trainer, tmp_path):
    train("3d_lowres_tiny", 0)
    train("3d_lowres_tiny", 1)
    print(sorted(of_labeled(tiny).iterdir()), sorted(of_unlabeled(tiny).iterdir()), sorted(of_unlabeled(tiny,1).iterdir()))
    cascade = train("cascade_tiny")
