"""nnU-Net's own training under our schedule keys: the supervised baseline of every comparison."""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict
from typing import ClassVar

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dvcl.config import TrainingConfig


class nnUNetTrainerSupervised(nnUNetTrainer):
    """nnUNetTrainer whose optimizer, learning rate, length and seed come from the plans' key ``"ssl"``.

    With the default values it is nnUNetTrainer. It ignores unlabeled scans.
    """

    config_class: ClassVar[type[TrainingConfig]] = TrainingConfig
    config: TrainingConfig

    def initialize(self) -> None:
        self.config = self.config_class.from_plans(self.configuration_manager.configuration)
        self.initial_lr = self.config.initial_lr
        self.num_epochs = self.config.num_epochs
        self.num_iterations_per_epoch = self.config.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.config.num_val_iterations_per_epoch
        self._respect_num_threads()
        self._seed_everything()
        super().initialize()
        self.logger.update_config({"ssl": asdict(self.config)})
        self.print_to_log_file(f"{type(self).__name__} uses {json.dumps(asdict(self.config))}")

    def configure_optimizers(self):
        if self.config.optimizer == "sgd":
            return super().configure_optimizers()
        optimizer = torch.optim.AdamW(
            self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay, amsgrad=True
        )
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def load_checkpoint(self, checkpoint: str) -> None:
        super().load_checkpoint(checkpoint)
        # a resumed run must not see the patches and augmentations of its first epochs again
        self._seed_everything(self.current_epoch)

    def _respect_num_threads(self) -> None:
        """On a CPU nnUNetv2_train takes all cores; beside a busy process that is several times slower than one."""
        num_threads = os.environ.get("OMP_NUM_THREADS", "")
        if self.device.type == "cpu" and num_threads.isdigit() and int(num_threads) > 0:
            torch.set_num_threads(int(num_threads))

    def _seed_everything(self, offset: int = 0) -> None:
        if self.config.seed is not None:
            seed = self.config.seed + offset
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
