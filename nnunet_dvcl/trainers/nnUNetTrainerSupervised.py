"""nnU-Net's own training under our schedule keys: the supervised baseline of every comparison."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_dvcl import distributed
from nnunet_dvcl.config import TrainingConfig
from nnunet_dvcl.networks import unwrap
from nnunet_dvcl.trainers.checkpoint import SSLState, add_ssl_state, read_ssl_state


class nnUNetTrainerSupervised(nnUNetTrainer):
    """nnUNetTrainer whose optimizer, learning rate, length and seed come from the plans' key ``"ssl"``.

    With the default values it trains as nnUNetTrainer does. It ignores unlabeled scans. What deploys is its network,
    exactly as nnU-Net builds it.

    Raises:
        UserError: bad hyper-parameters, or a checkpoint of another trainer or of other hyper-parameters.
    """

    config_class: ClassVar[type[TrainingConfig]] = TrainingConfig
    config: TrainingConfig

    def initialize(self) -> None:
        self.config = self.read_config()
        self.initial_lr = self.config.initial_lr
        self.num_epochs = self.config.num_epochs
        self.num_iterations_per_epoch = self.config.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.config.num_val_iterations_per_epoch
        if self.is_ddp:
            self._use_own_device()
        self._respect_num_threads()
        self._seed_everything()
        with _wrapped_on(self.device) if self.is_ddp else nullcontext():
            super().initialize()
        self.logger.update_config({"ssl": asdict(self.config)})
        self.print_to_log_file(f"{type(self).__name__} uses {json.dumps(asdict(self.config))}")

    def _use_own_device(self) -> None:
        """nnU-Net takes the GPU with the number of the global rank, which is another one on a second machine."""
        self.device = distributed.own_device(self.my_init_kwargs["device"])
        if self.device.type == "cpu":
            self.grad_scaler = None

    def read_config(self) -> TrainingConfig:
        return self.config_class.from_plans(self.configuration_manager.configuration)

    def configure_optimizers(self):
        if self.config.optimizer == "sgd":
            return super().configure_optimizers()
        optimizer = torch.optim.AdamW(
            self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay, amsgrad=True
        )
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def build_vanilla_network(self, enable_deep_supervision: bool) -> nn.Module:
        """The network as nnU-Net builds it from the plans alone, with fresh weights, on the CPU."""
        return self._architecture_owner.build_network_architecture(
            self.plans_manager,
            self.configuration_manager,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            enable_deep_supervision,
        )

    @property
    def _architecture_owner(self) -> type[nnUNetTrainer]:
        """The class whose `build_network_architecture` we use, normally nnUNetTrainer: it can load network A again."""
        return next(owner for owner in type(self).__mro__ if "build_network_architecture" in vars(owner))

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.local_rank == 0:
            for leftover in Path(self.output_folder).glob("*.partial"):  # of a run that was killed while it wrote
                leftover.unlink()
        self._verify_deployable()

    def _verify_deployable(self) -> None:
        """A model that plain nnU-Net could not load fails now, not after 1000 epochs."""
        with torch.random.fork_rng(devices=[]):  # its initial weights are nothing that training should depend on
            network = self.build_vanilla_network(enable_deep_supervision=False)
        network.load_state_dict(unwrap(self.network).state_dict())

    def save_checkpoint(self, filename: str) -> None:
        partial = f"{filename}.partial"
        super().save_checkpoint(partial)
        if self.local_rank == 0 and not self.disable_checkpointing:
            add_ssl_state(partial, self.ssl_state(), self._architecture_owner.__name__, filename)

    def ssl_state(self) -> SSLState:
        """What the checkpoint gets beside nnU-Net's own content."""
        return SSLState(type(self).__name__, asdict(self.config))

    def load_checkpoint(self, checkpoint: str) -> None:
        if not self.was_initialized:
            self.initialize()
        state = read_ssl_state(checkpoint, type(self).__name__, self.config, self.device)
        super().load_checkpoint(checkpoint)
        self.load_ssl_state(state)

    def load_ssl_state(self, state: SSLState) -> None:
        # a resumed run must not see the patches and augmentations of its first epochs again
        self._seed_everything(self.current_epoch)

    def _respect_num_threads(self) -> None:
        """On a CPU nnUNetv2_train takes all cores; beside a busy process that is several times slower than one."""
        num_threads = os.environ.get("OMP_NUM_THREADS", "")
        if self.device.type == "cpu" and num_threads.isdigit() and int(num_threads) > 0:
            torch.set_num_threads(int(num_threads))

    def _seed_everything(self, epoch: int = 0) -> None:
        """Each rank draws patches and voxels of its own; its initial weights give way to those of rank 0."""
        if self.config.seed is not None:
            seed = self.config.seed + epoch * distributed.world_size() + distributed.rank()
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
        elif self.is_ddp:
            torch.seed()  # unseeded, torch begins with the same numbers in every process

    def print_to_log_file(self, *args, **kwargs) -> None:
        if self.local_rank == 0:
            super().print_to_log_file(*args, **kwargs)


@contextmanager
def _wrapped_on(device: torch.device) -> Iterator[None]:
    """nnU-Net's `initialize` wraps its network for `device` and not for the GPU with the number of the global rank."""
    module = sys.modules[nnUNetTrainer.__module__]
    original = module.DDP
    module.DDP = lambda network, device_ids: distributed.wrap(network, device)
    try:
        yield
    finally:
        module.DDP = original
