"""Whole epochs of a training: loaders, steps, validation, what is measured once an epoch, log, curves, checkpoint."""

from __future__ import annotations

import os
from unittest import mock

import torch

from benchmarks.compare import Comparison, compare
from benchmarks.data_set import start_training, write_data_set
from benchmarks.sizes import Size
from benchmarks.synthetic import empty_folders
from nnunet_dvcl.trainers import nnUNetTrainerCPS, nnUNetTrainerDVCL

STEPS = 50


def dvcl_epoch_over_cps(size: Size, device: torch.device, repeats: int) -> Comparison:
    """What HqCL and DVCL add to a training of the twin networks."""
    lengths = {"num_iterations_per_epoch": STEPS, "num_val_iterations_per_epoch": 2}
    with empty_folders() as root, mock.patch.dict(os.environ, {"nnUNet_n_proc_DA": "0"}):
        write_data_set(root, size, {"seed": 0, **lengths})
        dvcl, cps = (start_training(trainer, root, device) for trainer in (nnUNetTrainerDVCL, nnUNetTrainerCPS))
        return compare(
            f"epoch of DVCL / epoch of CPS, {STEPS} steps each",
            ("DVCL", lambda: _epoch(dvcl)),
            ("CPS", lambda: _epoch(cps)),
            target=1.10,
            repeats=repeats,
            warmup=1,
            device=device,
            size=size.name,
            memory=False,
        )


def _epoch(trainer) -> None:
    """As in nnUNetTrainer.run_training."""
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    batches = range(trainer.num_iterations_per_epoch)
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train)) for _ in batches])
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        batches = range(trainer.num_val_iterations_per_epoch)
        trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val)) for _ in batches])
    trainer.on_epoch_end()
