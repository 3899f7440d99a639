"""The base of every semi-supervised trainer: the only place where nnU-Net and our pieces meet."""

from __future__ import annotations

import os
from typing import ClassVar

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import join
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor, nn

from nnunet_dvcl import distributed
from nnunet_dvcl.cascade.next_stage import predict_unlabeled
from nnunet_dvcl.config import SSLConfig
from nnunet_dvcl.data import (
    UnlabeledLoader,
    allowed_workers,
    divide_workers,
    get_unlabeled_dataset,
    start_augmenter,
    stop_augmenter,
    unlabeled_transforms,
)
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.labels import Labels, labels_of
from nnunet_dvcl.networks import full_resolution, ready_to_gather, unwrap
from nnunet_dvcl.trainers.base.checkpoint import SSLState
from nnunet_dvcl.trainers.base.progress_plot import plot_progress
from nnunet_dvcl.trainers.base.step import Step, Term, labeled_part, to_device, to_host
from nnunet_dvcl.trainers.nnUNetTrainerSupervised import nnUNetTrainerSupervised


class nnUNetTrainerSSL(nnUNetTrainerSupervised):
    """nnUNetTrainer with a stream of unlabeled patches and room for a method.

    A method overrides

    - `build_companions`: networks and heads that are trained beside nnU-Net's own network A (optimized, compiled,
      wrapped for several GPUs, checkpointed),
    - `build_memory`: banks, queues, averaged teachers (checkpointed only),
    - `students`: the networks that get nnU-Net's supervised loss,
    - `views` and `forward`: what a student sees of the images, and how it is run on it,
    - `ssl_terms`: its terms of the total loss, and what it wants logged,
    - `before_backward`: what it wants to look at between the terms and their gradients,
    - `after_step`: what follows the optimizer's step,
    - `epoch_statistics`: what it measures once an epoch,
    - `why_zero`: the reason why one of its terms was 0 for a whole epoch.

    What deploys is network A, exactly as nnU-Net builds it.

    Raises:
        UserError: bad unlabeled data or hyper-parameters, a cascade without the predictions of its previous stage, or a
            batch that is too small for the number of GPUs.
    """

    config_class: ClassVar[type[SSLConfig]] = SSLConfig
    config: SSLConfig
    labels: Labels
    companions: nn.ModuleDict
    memory: nn.ModuleDict
    iteration: int
    loss_terms: tuple[str, ...]
    unlabeled_batch_size: int  # of this rank, as nnU-Net's batch_size
    dataloader_unlabeled = None

    # ---------------------------------------------------------------- what a method overrides

    def build_companions(self) -> dict[str, nn.Module]:
        return {}

    def build_memory(self) -> dict[str, nn.Module]:
        return {}

    def students(self) -> dict[str, nn.Module]:
        return {"A": self.network}

    def views(self, image: Tensor) -> dict[str, Tensor]:
        """What each student sees of the images that the loaders make."""
        return dict.fromkeys(self.students(), image)

    def forward(self, name: str, image: Tensor) -> Tensor | list[Tensor]:
        """A student's output for what it sees, with gradient."""
        return self.students()[name](image)

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        raise NotImplementedError("nnUNetTrainerSSL is the base of the methods: train with one, e.g. nnUNetTrainerDVCL")

    def before_backward(self, step: Step, terms: dict[str, Term]) -> None:
        """Nothing by default."""

    def after_step(self) -> None:
        """Nothing by default."""

    def epoch_statistics(self) -> dict[str, float]:
        """Scalars, measured after the validation of an epoch and logged as ``ssl/<name>``; runs without gradients."""
        return {}

    def why_zero(self, term: str) -> str:
        return "it never had anything to compare"

    # ---------------------------------------------------------------- set-up

    def initialize(self) -> None:
        self._refuse_the_base()
        super().initialize()
        self.labels = labels_of(self.label_manager)
        self.iteration = 0
        self.companions = nn.ModuleDict(self.build_companions()).to(self.device)
        self.memory = nn.ModuleDict(self.build_memory()).to(self.device)
        if self._do_i_compile():
            for name in self.students().keys() & self.companions.keys():
                self.companions[name] = torch.compile(self.companions[name])
        if self.is_ddp:
            for name, module in self.companions.items():
                self.companions[name] = distributed.wrap(module, self.device)
        if len(self.companions):
            self.optimizer.add_param_group({"params": list(self.companions.parameters())})

    def _refuse_the_base(self) -> None:
        name = type(self).__name__
        if type(self).ssl_terms is nnUNetTrainerSSL.ssl_terms:
            raise NotImplementedError(f"{name} is the base of the methods: train with one, e.g. nnUNetTrainerDVCL.")

    def _set_batch_size_and_oversample(self) -> None:
        ranks, labeled = distributed.world_size(), self.configuration_manager.batch_size
        unlabeled = self.config.unlabeled_batch_size or labeled
        if min(labeled, unlabeled) < ranks:
            raise UserError(
                f"A step has {labeled} labeled and {unlabeled} unlabeled patches, too few for {ranks} GPUs: each needs "
                "one of either. Use fewer GPUs, or raise batch_size and ssl.unlabeled_batch_size with "
                "nnunet_dvcl configure."
            )
        super()._set_batch_size_and_oversample()
        self.unlabeled_batch_size = distributed.share(unlabeled)

    # ---------------------------------------------------------------- data

    @property
    def _num_processes(self) -> int:
        return min(default_num_processes, os.cpu_count() or 1)

    def get_dataloaders(self):
        previous_stage = self.previous_stage()
        dataset = get_unlabeled_dataset(
            self.plans_manager,
            self.configuration_manager,
            self.dataset_json,
            self.fold,
            self._num_processes,
            self.print_to_log_file,
            self.config.unlabeled_folder,
            previous_stage and previous_stage.unlabeled,
        )
        if previous_stage is not None:
            previous_stage.check_unlabeled(dataset)
        labeled_workers, unlabeled_workers = divide_workers(
            get_allowed_n_proc_DA(), self.batch_size, self.unlabeled_batch_size
        )
        with allowed_workers(labeled_workers):
            loaders = super().get_dataloaders()
        self.dataloader_unlabeled = start_augmenter(
            self._unlabeled_loader(dataset), unlabeled_workers, pin_memory=self.device.type == "cuda"
        )
        return loaders

    def _unlabeled_loader(self, dataset) -> UnlabeledLoader:
        patch_size = self.configuration_manager.patch_size
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        transforms = self.get_training_transforms(
            patch_size,
            rotation,
            None,
            mirror_axes,
            dummy_2d,
            use_mask_for_norm=self.configuration_manager.use_mask_for_norm,
            is_cascaded=self.is_cascaded,
            foreground_labels=self.label_manager.foreground_labels,
        )
        return UnlabeledLoader(
            dataset,
            self.unlabeled_batch_size,
            initial_patch_size,
            patch_size,
            self.label_manager,
            transforms=unlabeled_transforms(transforms),
        )

    # ---------------------------------------------------------------- training

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.companions.train()

    @property
    def progress(self) -> float:
        """The share of all training iterations that is done."""
        return self.iteration / (self.num_epochs * self.num_iterations_per_epoch)

    def train_step(self, batch: dict) -> dict[str, float]:
        """The supervised loss of each student (DVCL, Eq. 1), the method's terms, one update; returns what is logged."""
        self.check_labels(batch)
        self.optimizer.zero_grad(set_to_none=True)
        terms, statistics = self._compute_terms(batch)
        self.loss_terms = tuple(terms)
        total = sum(term.weight * term.value for term in terms.values())
        finite = self._optimize(total)
        self.after_step()
        self.iteration += 1

        values = {name: term.value.detach() for name, term in terms.items()} | {"total": total.detach()}
        on_host = to_host(values | statistics | {"skipped_steps": ~finite})
        self.count_step(on_host["skipped_steps"], {name: on_host[name] for name in values})
        # nnU-Net's own curves compare the training with the validation loss, so this is A's supervised loss
        return {"loss": on_host["supervised_A"], **on_host}

    def _compute_terms(self, batch: dict) -> tuple[dict[str, Term], dict[str, Tensor | float]]:
        """All terms of the loss, and the method's statistics.

        Apart from the update, so that outputs and features that no gradient needs are free by then.
        """
        unlabeled = next(self.dataloader_unlabeled)
        target = to_device(batch["target"], self.device)
        image = torch.cat((batch["data"], unlabeled["data"])).to(self.device, non_blocking=True)
        num_labeled = len(batch["data"])
        views = self.views(image)

        with self._autocast():
            outputs = {name: ready_to_gather(self.forward(name, views[name])) for name in self.students()}
            terms = {
                f"supervised_{name}": Term(self.loss(labeled_part(output, num_labeled), target), 1.0)
                for name, output in outputs.items()
            }
        step = Step(
            image=views["A"],
            logits={name: full_resolution(output) for name, output in outputs.items()},
            target=self.labels.of_target(full_resolution(target)),
            valid=(unlabeled["target"][:, 0] >= 0).to(self.device, non_blocking=True),
            progress=self.progress,
            labels=self.labels,
            ignored_as_unlabeled=self.config.ignored_as_unlabeled and self.label_manager.has_ignore_label,
        )
        terms |= self.ssl_terms(step)
        self.before_backward(step, terms)
        return terms, step.statistics

    def _clip_gradients(self) -> Tensor:
        """Each network by itself, as nnU-Net does for its one."""
        modules = (self.network, *self.companions.values())
        return sum(nn.utils.clip_grad_norm_(module.parameters(), 12) for module in modules)

    def on_train_end(self) -> None:
        super().on_train_end()
        stop_augmenter(self.dataloader_unlabeled)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        super().perform_actual_validation(save_probabilities)
        if self.configuration_manager.next_stage_names:
            self._predict_next_stage()

    def _predict_next_stage(self) -> None:
        """What nnU-Net does for the validation cases, for the unlabeled ones."""
        predictor = nnUNetPredictor(device=self.device, allow_tqdm=False)
        predictor.manual_initialization(
            unwrap(self.network),
            self.plans_manager,
            self.configuration_manager,
            None,
            self.dataset_json,
            type(self).__name__,
            self.inference_allowed_mirroring_axes,
        )
        self.set_deep_supervision_enabled(False)
        predict_unlabeled(
            predictor,
            type(self).__name__,
            self.configuration_name,
            self.fold,
            self._num_processes,
            self.print_to_log_file,
        )
        self.set_deep_supervision_enabled(True)

    # ---------------------------------------------------------------- logging

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        of_ranks = distributed.gather_objects(collate_outputs(train_outputs))
        outputs = {key: np.concatenate([of_rank[key] for of_rank in of_ranks]) for key in of_ranks[0] if key != "loss"}
        skipped = outputs.pop("skipped_steps").astype(bool)
        outputs = {key: values[~skipped] for key, values in outputs.items()}
        means = {key: _mean_of_finite(values) for key, values in outputs.items()}
        means["skipped_steps"] = float(skipped.sum()) / len(of_ranks)  # all ranks skip the same steps
        for key, mean in means.items():
            self._log(f"ssl/{key}", mean)
        self._print_values(means)
        for term in self.loss_terms:
            if len(outputs[term]) and not outputs[term].any():
                self.print_to_log_file(f"WARNING: ssl/{term} was 0 for the whole epoch: {self.why_zero(term)}.")

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        super().on_validation_epoch_end(val_outputs)
        statistics = self.epoch_statistics()
        for key, value in statistics.items():
            self._log(f"ssl/{key}", value)
        if statistics:
            self._print_values(statistics)

    def _print_values(self, values: dict[str, float]) -> None:
        self.print_to_log_file("ssl", ", ".join(f"{key} {value:.4g}" for key, value in values.items()))

    def _log(self, key: str, value: float) -> None:
        # nnU-Net's logger wants one value an epoch from the first epoch on, also for keys that came later
        log = self.logger.local_logger.my_fantastic_logging.setdefault(key, [])
        log.extend([float("nan")] * (self.current_epoch - len(log)))
        self.logger.log(key, value, self.current_epoch)

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self.local_rank != 0:
            return
        logging = self.logger.get_checkpoint()
        ssl = {key.removeprefix("ssl/"): values for key, values in logging.items() if key.startswith("ssl/")}
        plot_progress(ssl, join(self.output_folder, "progress_ssl.png"))

    # ---------------------------------------------------------------- checkpoint

    def ssl_state(self) -> SSLState:
        state = super().ssl_state()
        # --c begins an epoch, also where this one was not finished
        state.iteration = (self.current_epoch + 1) * self.num_iterations_per_epoch
        state.companions = {name: unwrap(module).state_dict() for name, module in self.companions.items()}
        state.memory = self.memory.state_dict()
        return state

    def load_ssl_state(self, state: SSLState) -> None:
        super().load_ssl_state(state)
        self.iteration = state.iteration
        for name, module in self.companions.items():
            unwrap(module).load_state_dict(state.companions[name])
        self.memory.load_state_dict(state.memory)


def _mean_of_finite(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")
