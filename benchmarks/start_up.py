"""Whole processes and loaders: batches of the two streams (7), and the way to the first step (8)."""

from __future__ import annotations

import os
import subprocess
import sys
from unittest import mock

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from benchmarks.compare import Comparison, compare
from benchmarks.data_set import trainer_on, write_data_set
from benchmarks.sizes import Size
from benchmarks.synthetic import empty_folders
from nnunet_dvcl.trainers import nnUNetTrainerDVCL

# nnUNetv2_train that ends where its first step would begin
_UNTIL_FIRST_STEP = """
import os
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
nnUNetTrainer.on_train_epoch_start = lambda trainer: os._exit(0)
run_training_entry()
os._exit(1)
"""


def loaders_over_nnunet(size: Size, repeats: int, batches: int = 5) -> Comparison:
    """7. Both streams against nnU-Net's one loader at the same number of patches, in this process."""
    with empty_folders() as root, mock.patch.dict(os.environ, {"nnUNet_n_proc_DA": "0"}):
        write_data_set(root, size, {"seed": 0})
        ours = trainer_on(nnUNetTrainerDVCL, root, "3d_fullres", 0)
        labeled, _ = ours.get_dataloaders()
        unlabeled = ours.dataloader_unlabeled
        stock, _ = trainer_on(nnUNetTrainer, root, "stock", 1).get_dataloaders()

        def two_streams() -> None:
            for _ in range(batches):
                next(labeled)
                next(unlabeled)

        def one_stream() -> None:
            for _ in range(batches):
                next(stock)

        return compare(
            "batches of both streams / of nnU-Net's loader at B_l + B_u",
            ("two streams", two_streams),
            ("one stream", one_stream),
            target=1 / 0.95,
            repeats=repeats,
            size=size.name,
            memory=False,
        )


def start_up_over_nnunet(size: Size, repeats: int, stock: str = "nnUNetTrainer") -> Comparison:
    """8. ``nnUNetv2_train`` to its first step, processor time of the whole process.

    nnU-Net finds `nnUNetTrainer` in the first file that it opens; for another trainer of its own, as for ours, it opens
    all of them.
    """
    with empty_folders() as root:
        write_data_set(root, size, {"seed": 0})
        environment = os.environ | {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}

        def train(trainer: str) -> None:
            arguments = ["900", "3d_fullres", "0", "-tr", trainer, "-device", "cpu"]
            command = [sys.executable, "-c", _UNTIL_FIRST_STEP, *arguments]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)

        return compare(
            f"nnUNetv2_train to the first step, DVCL / {stock}",
            ("DVCL", lambda: train("nnUNetTrainerDVCL")),
            (stock, lambda: train(stock)),
            target=1.1,
            repeats=repeats,
            warmup=min(1, repeats - 1),  # the first start reads everything from the disk
            size=size.name,
            memory=False,
        )
