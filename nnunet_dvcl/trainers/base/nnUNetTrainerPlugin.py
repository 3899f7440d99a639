"""nnU-Net's trainer under our schedule, update and checkpoint: what every trainer of ours is."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import inf
from pathlib import Path
from tempfile import TemporaryFile
from time import time
from typing import ClassVar

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import join
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetNumpy
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunet_dvcl import distributed
from nnunet_dvcl.cascade.previous_stage import PreviousStage, check_stages, stage_before
from nnunet_dvcl.data import NumpyDataset, with_own_random_numbers
from nnunet_dvcl.data.folders import labeled_cases
from nnunet_dvcl.data.splits import withheld_cases
from nnunet_dvcl.endings import message_alone
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.files import replacing, writing
from nnunet_dvcl.networks import freeze_idle_layers, unwrap
from nnunet_dvcl.trainers.base.checkpoint import SSLState, Weights, add_ssl_state, read_ssl_state
from nnunet_dvcl.trainers.base.config import TrainingConfig
from nnunet_dvcl.trainers.base.label_values import check_labels_of, check_named_labels
from nnunet_dvcl.trainers.base.seeds import derive_seed
from nnunet_dvcl.trainers.base.shown_progress import ShownProgress
from nnunet_dvcl.trainers.base.update import MOST_SKIPPED_IN_A_ROW, SkippedSteps, update

MOST_TO_LOSE = 30 * 60.0
"""Seconds of training that a kill costs at most, or those of one epoch where that takes longer."""


class nnUNetTrainerPlugin(ShownProgress, nnUNetTrainer):
    """nnUNetTrainer whose optimizer, learning rate, length and seed come from the plans' key ``"ssl"``.

    What deploys is its network, exactly as nnU-Net builds it. A trainer on it brings a `train_step`, which ends with
    `update_weights` and `count_step`.

    Raises:
        UserError: bad hyper-parameters, a bad split, a label that dataset.json does not name, a checkpoint of another
            trainer or of other hyper-parameters, one that cannot be read or written, a cascade without the predictions
            of its previous stage, or a loss that is not finite for too many steps.
    """

    config_class: ClassVar[type[TrainingConfig]] = TrainingConfig
    config: TrainingConfig
    skipped: SkippedSteps
    _saved_at: float = inf  # when the checkpoint was written that --c goes on from; before it, when training began

    def initialize(self) -> None:
        # of several ranks nnU-Net's constructor takes each to have a GPU, whatever was asked for
        device = self.my_init_kwargs["device"] if self.is_ddp else self.device
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "torch finds no GPU here: for small data train with -device cpu; else check the driver (nvidia-smi) "
                "and torch's build (nnunet_dvcl doctor)."
            )
        with writing(self.output_folder), TemporaryFile(dir=self.output_folder):
            pass  # not only when the first checkpoint is written
        check_named_labels(self.label_manager)
        self.config = self.read_config()
        self.initial_lr = self.config.initial_lr
        self.num_epochs = self.config.num_epochs
        self.num_iterations_per_epoch = self.config.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.config.num_val_iterations_per_epoch
        if self.is_ddp:
            self._use_own_device()
        self._respect_num_threads()
        self._seed_everything()
        self.skipped = SkippedSteps()
        if self._do_i_compile():
            # each of our few batch sizes gets a static graph, which is faster than one for all sizes
            torch._dynamo.config.automatic_dynamic_shapes = False
        with _wrapped_on(self.device) if self.is_ddp else nullcontext():
            super().initialize()
        if self.dataset_class is nnUNetDatasetNumpy:
            self.dataset_class = NumpyDataset
        self.logger.update_config({"ssl": self.config.model_dump()})
        self.print_to_log_file(f"{type(self).__name__} uses {json.dumps(self.config.model_dump())}")

    def _use_own_device(self) -> None:
        """nnU-Net takes the GPU with the number of the global rank, which is another one on a second machine."""
        self.device = distributed.own_device(self.my_init_kwargs["device"])
        if self.device.type == "cpu":
            self.grad_scaler = None

    def read_config(self) -> TrainingConfig:
        return self.config_class.from_plans(self.configuration_manager.configuration)

    def configure_optimizers(self, *stage):
        """`stage` comes from those trainers of nnU-Net that have a warm-up, and ask again when it begins and ends."""
        if self.config.optimizer == "sgd":
            return super().configure_optimizers(*stage)
        if self.optimizer is not None:
            return self.optimizer, self.lr_scheduler
        optimizer = torch.optim.AdamW(
            self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay, amsgrad=True
        )
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        *others, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.config.mirroring:
            mirror_axes = self.inference_allowed_mirroring_axes = None
        return *others, mirror_axes

    def get_training_transforms(self, *args, **kwargs) -> ComposeTransforms:
        """nnU-Net's own, in workers whose random numbers differ."""
        return with_own_random_numbers(super().get_training_transforms(*args, **kwargs))

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        try:
            super().set_deep_supervision_enabled(enabled)
        except AttributeError as error:
            raise NotImplementedError(
                f"{type(unwrap(self.network)).__name__} has no decoder whose deep supervision nnU-Net could switch: "
                "override set_deep_supervision_enabled, as nnU-Net's Primus trainers do."
            ) from error

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

    @message_alone()
    def run_training(self) -> None:
        super().run_training()

    @message_alone()
    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        super().perform_actual_validation(save_probabilities)

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        self._check_stages()
        super().on_train_start()
        self._saved_at = time()
        if self.local_rank == 0:
            for leftover in Path(self.output_folder).glob("*.partial"):  # of a run that was killed while it wrote
                leftover.unlink()
        self._verify_deployable()

    def previous_stage(self) -> PreviousStage | None:
        """Whose predictions a cascade uses; None where this is none."""
        return stage_before(self.plans_manager, type(self).__name__, self.configuration_name, self.fold)

    def _check_stages(self) -> None:
        """What nnU-Net would stumble over in the first batch of a cascade, or when its previous stage is finished."""
        check_stages(self.plans_manager, self.configuration_name)
        previous_stage = self.previous_stage()
        if previous_stage is not None:
            train, validation = self.do_split()
            splits_file = join(self.preprocessed_dataset_folder_base, "splits_final.json")
            previous_stage.check_labeled({*train, *validation}, splits_file)

    def _verify_deployable(self) -> None:
        """A model that plain nnU-Net could not load fails now, not after 1000 epochs."""
        with torch.random.fork_rng(devices=[]):  # its initial weights are nothing that training should depend on
            network = self.build_vanilla_network(enable_deep_supervision=False)
        network.load_state_dict(unwrap(self.network).state_dict())

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's own, of a file that is as it should be."""
        labeled = labeled_cases(self.dataset_class, self.preprocessed_dataset_folder)
        withheld_cases(join(self.preprocessed_dataset_folder_base, "splits_final.json"), self.fold, labeled)
        return super().do_split()

    def check_labels(self, batch: dict) -> None:
        """Raises ``UserError`` for a label without a channel of the output."""
        check_labels_of(batch, self.label_manager)

    def validation_step(self, batch: dict) -> dict:
        self.check_labels(batch)
        return super().validation_step(batch)

    def update_weights(self, loss: Tensor) -> Tensor:
        """One step of the optimizer; returns [] bool: whether it was made, as loss and gradients were finite."""
        return update(loss, self.optimizer, self.grad_scaler, self._clip_gradients)

    def autocast(self) -> AbstractContextManager:
        """nnU-Net's precision, for whatever runs a network."""
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def _clip_gradients(self) -> Tensor:
        return nn.utils.clip_grad_norm_(self.network.parameters(), 12)

    def count_step(self, skipped: bool, losses: dict[str, float], *batches: dict) -> None:
        """Counts the steps whose loss or gradients were not finite, and stops the training after too many in a row.

        Raises:
            UserError: names the losses and the cases. The weights, which none of these steps changed, are saved before.
        """
        self.show_step()
        self.skipped.count(skipped, losses, batches)
        if self.skipped.in_a_row < MOST_SKIPPED_IN_A_ROW:
            return
        file = join(self.output_folder, "checkpoint_latest.pth")
        self.current_epoch -= 1  # --c begins this epoch anew; saving counts it as done
        self.save_checkpoint(file)
        saved = "Nothing is saved: checkpoints are disabled" if self.disable_checkpointing else f"{file} is from before"
        raise UserError(
            f"The loss or its gradients were not finite in {self.skipped.in_a_row} steps in a row "
            f"({self.skipped.names()}). They were skipped and changed no weight. {saved}. Cases in such steps: "
            f"{self.skipped.case_names()}. Is there an image with NaN or extreme values (nnUNetv2_plan_and_preprocess "
            "--verify_dataset_integrity)? Is ssl.initial_lr too high?"
        )

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        done = [output for output in train_outputs if not output["skipped_steps"]]
        super().on_train_epoch_end(done or train_outputs)
        if len(done) < len(train_outputs):
            self.print_to_log_file(
                f"WARNING: {len(train_outputs) - len(done)} of {len(train_outputs)} steps were skipped, because "
                f"{self.skipped.reason()}. Cases: {self.skipped.case_names()}."
            )
        self.skipped.forget_epoch()

    def on_epoch_end(self) -> None:
        """nnU-Net saves ``checkpoint_latest.pth`` every `save_every` epochs, however long they take."""
        usual = self.save_every
        if self._has_much_to_lose():
            self.save_every = 1
        super().on_epoch_end()
        self.save_every = usual

    def _has_much_to_lose(self) -> bool:
        """Whether another epoch like this one would be too much to lose; rank 0, which alone saves, asks its clock."""
        now = time()
        return now - self._saved_at + now - self.logger.get_value("epoch_start_timestamps", step=-1) > MOST_TO_LOSE

    def save_checkpoint(self, filename: str) -> None:
        """Raises ``UserError`` where it cannot be written; what `filename` was before is unchanged then."""
        if os.path.basename(filename) == "checkpoint_latest.pth":  # --c takes it before checkpoint_best.pth
            self._saved_at = time()
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            super().save_checkpoint(filename)  # tells so
            return
        with replacing(filename) as partial:
            super().save_checkpoint(partial)
            add_ssl_state(partial, self.ssl_state(), self._architecture_owner.__name__)

    def ssl_state(self) -> SSLState:
        """What the checkpoint gets beside nnU-Net's own content."""
        return SSLState(type(self).__name__, self.config.model_dump())

    @classmethod
    def saved_networks(cls, checkpoint: dict) -> dict[str, Weights]:
        """The weights of every network that a checkpoint of this trainer holds, by name; A, which deploys, first."""
        return {"A": checkpoint["network_weights"]}

    @message_alone()
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
            seed = derive_seed(self.config.seed, epoch, distributed.rank())
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
    """nnU-Net's `initialize` wraps its network for `device` and not for the GPU with the number of the global rank.

    It is patched because nnU-Net 2.8.1 has no seam there: it builds, wraps and makes the loss in one method, and
    elsewhere reads from the same `local_rank` who writes files, and from `is_ddp` what the loss and the batch are.
    """
    module = sys.modules[nnUNetTrainer.__module__]
    original = module.DDP
    module.DDP = lambda network, device_ids: distributed.wrap(freeze_idle_layers(network), device)
    try:
        yield
    finally:
        module.DDP = original
