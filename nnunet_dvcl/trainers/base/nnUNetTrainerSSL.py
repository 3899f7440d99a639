"""The base of every semi-supervised trainer: one step, and what a method brings to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch import Tensor, nn

from nnunet_dvcl import distributed
from nnunet_dvcl.data import with_valid_voxels
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.labels import UNKNOWN, Labels, labels_of
from nnunet_dvcl.networks import freeze_idle_layers, ready_to_gather, run_again_for_gradients, unwrap
from nnunet_dvcl.options import Count, Flag, Share, Weight, or_null
from nnunet_dvcl.trainers.base.checkpoint import SSLState
from nnunet_dvcl.trainers.base.config import TrainingConfig
from nnunet_dvcl.trainers.base.logged_values import LoggedValues
from nnunet_dvcl.trainers.base.nnUNetTrainerPlugin import nnUNetTrainerPlugin
from nnunet_dvcl.trainers.base.passes import Passes
from nnunet_dvcl.trainers.base.seeds import derive_seed
from nnunet_dvcl.trainers.base.step import Output, Reach, Step, Term, patches_of, to_device, to_host
from nnunet_dvcl.trainers.base.unlabeled_stream import UnlabeledStream


class SSLConfig(TrainingConfig):
    """What every semi-supervised trainer has."""

    may_change: ClassVar[frozenset[str]] = frozenset({"skip_bad_scans"})

    unlabeled_batch_size: or_null(Count) = None  # unlabeled patches a step, over all GPUs; null: the plan's batch size
    consistency_weight: Weight = 0.1  # λ_u of Eq. 3. Paper
    rampup_fraction: Share = 1.0  # share of training over which λ_u rises by w(t); 0: no ramp
    unlabeled_folder: Flag = True  # scans of `imagesTr_unlabeled` take part
    skip_bad_scans: Flag = False  # scans that cannot be used are left out and listed; false: they end the run
    ignored_as_unlabeled: Flag = True  # voxels of the ignore label count as unlabeled ones
    sequential_twins: Flag = False  # each network runs again for its gradients: half the memory


class nnUNetTrainerSSL(UnlabeledStream, LoggedValues, nnUNetTrainerPlugin):
    """nnUNetTrainer with a stream of unlabeled patches and room for a method.

    A method overrides

    - `build_companions`: networks and heads that are trained beside nnU-Net's own network A (optimized, compiled,
      wrapped for several GPUs, checkpointed),
    - `build_memory`: banks, queues, averaged teachers (checkpointed only),
    - `student_names`: the networks that get nnU-Net's supervised loss, A and companions by their names,
    - `views`: what each student, or a teacher, sees of the images,
    - `forward`: how a student is run on it,
    - `after_forward`: what it keeps of the students' runs,
    - `supervised_terms`: nnU-Net's loss of each student on the labeled patches,
    - `ssl_terms`: its terms of the total loss, and what it wants logged,
    - `before_backward`: what it wants to look at between the terms and their gradients,
    - `after_step`: what follows an update of the weights,
    - `epoch_statistics`: what it measures once an epoch,
    - `why_zero`: the reason why one of its terms was 0 for a whole epoch,
    - `symptoms`: what the values of an epoch show to be wrong,

    and declares `config_class`, `reaches`, `panels` and `passes`. What several methods have in common are parts, used
    by inheritance beside this class: `Twins`, `WeightedTwins`, `EMATeacher`, `Features`, `Adversary`,
    `SignedDistances`.

    What deploys is network A, exactly as nnU-Net builds it.

    Raises:
        UserError: bad unlabeled data or hyper-parameters, a cascade without the predictions of its previous stage, or a
            batch that is too small for the number of GPUs.
    """

    config_class: ClassVar[type[SSLConfig]] = SSLConfig
    student_names: ClassVar[tuple[str, ...]] = ("A",)
    reaches: ClassVar[Mapping[str, Reach]] = {}  # term of `ssl_terms` -> what its gradient reaches
    passes: ClassVar[Passes] = Passes()  # of a step, with the default values
    needs_float64: ClassVar[bool] = False  # which mps devices lack: draws, and sums over all voxels of a batch, do
    config: SSLConfig
    labels: Labels
    companions: nn.ModuleDict
    memory: nn.ModuleDict
    iteration: int

    # ---------------------------------------------------------------- what a method overrides

    def build_companions(self) -> dict[str, nn.Module]:
        return {}

    def build_memory(self) -> dict[str, nn.Module]:
        return {}

    def students(self) -> dict[str, nn.Module]:
        return {name: self.network if name == "A" else self.companions[name] for name in self.student_names}

    def networks(self) -> dict[str, nn.Module]:
        """Every network that could deploy, A first; `saved_networks` finds the same in a checkpoint."""
        return self.students()

    def views(self, step: Step) -> dict[str, Tensor]:
        """What each student sees; views of others are kept in the step."""
        return dict.fromkeys(self.students(), step.image)

    def forward(self, name: str, image: Tensor) -> Output:
        """A student's output for what it sees, with gradient.

        With `sequential_twins` a network keeps nothing for its gradients: it runs again when they are asked for. By
        then those of the terms are done, and after them those of the student that ran last, since autograd goes from
        the newest to the oldest. So the activations of two students and of the terms are never held together.
        """
        if self.config.sequential_twins:
            return run_again_for_gradients(self.students()[name], image)
        return self.students()[name](image)

    def after_forward(self, step: Step) -> None:
        """Nothing by default."""

    def supervised_terms(self, step: Step) -> dict[str, Term]:
        """Each student's loss on the labeled patches (DVCL, Eq. 1); nnU-Net's own curve shows the first one."""
        return {
            f"supervised_{name}": Term(self.loss(patches_of(output, slice(step.num_labeled)), step.target_levels), 1.0)
            for name, output in step.outputs.items()
        }

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        raise NotImplementedError("nnUNetTrainerSSL is the base of the methods: train with one, e.g. nnUNetTrainerDVCL")

    def before_backward(self, step: Step, terms: dict[str, Term]) -> None:
        """Nothing by default."""

    def after_step(self) -> None:
        """Nothing by default; not called after a step that was skipped."""

    # ---------------------------------------------------------------- set-up

    def initialize(self) -> None:
        self._refuse_the_base()
        self._refuse_mps()
        super().initialize()
        self.labels = labels_of(self.label_manager)
        self.iteration = 0
        self._seed_of_ranks = distributed.gather_objects(torch.initial_seed())[0]
        self.companions = nn.ModuleDict(self.build_companions()).to(self.device)
        self.memory = nn.ModuleDict(self.build_memory()).to(self.device)
        if self._do_i_compile():
            for name in self.companions.keys() & set(self.student_names):
                self.companions[name] = torch.compile(self.companions[name])
        if self.is_ddp:
            for name, module in self.companions.items():
                self.companions[name] = distributed.wrap(freeze_idle_layers(module), self.device)
        if len(self.companions):
            self.optimizer.add_param_group({"params": list(self.companions.parameters())})

    def _refuse_the_base(self) -> None:
        name = type(self).__name__
        if type(self).ssl_terms is nnUNetTrainerSSL.ssl_terms:
            raise NotImplementedError(f"{name} is the base of the methods: train with one, e.g. nnUNetTrainerDVCL.")

    def _refuse_mps(self) -> None:
        if self.needs_float64 and self.device.type == "mps":
            raise UserError(
                f"{type(self).__name__} computes in float64, which mps lacks. Train with -device cpu, on a CUDA GPU, "
                "or with a method that needs none, such as nnUNetTrainerCPS: nnunet_dvcl doctor lists them."
            )

    def get_training_transforms(self, *args, **kwargs) -> ComposeTransforms:
        """nnU-Net's own; the target of the labeled patches ends with the mask of their valid voxels."""
        return with_valid_voxels(super().get_training_transforms(*args, **kwargs))

    # ---------------------------------------------------------------- training

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.companions.train()
        self.memory.train()

    @property
    def progress(self) -> float:
        """The share of all training iterations that is done."""
        return self.iteration / (self.num_epochs * self.num_iterations_per_epoch)

    def shared_generator(self) -> torch.Generator | None:
        """Random numbers of this step that are the same on all ranks; None on one rank: torch's own."""
        if distributed.world_size() == 1:
            return None
        return torch.Generator(self.device).manual_seed(derive_seed(self._seed_of_ranks, step=self.iteration + 1))

    def train_step(self, batch: dict) -> dict[str, float]:
        """The supervised loss of each student, the method's terms, one update; returns what is logged."""
        self.check_labels(batch)
        self.optimizer.zero_grad(set_to_none=True)
        unlabeled = next(self.dataloader_unlabeled)
        terms, statistics = self._compute_terms(batch, unlabeled)
        self.loss_terms = tuple(terms)
        total = sum(term.weight * term.value for term in terms.values())
        updated = self.update_weights(total)
        values = {name: term.value.detach() for name, term in terms.items()} | {"total": total.detach()}
        on_host = to_host(values | statistics | {"skipped_steps": ~updated})
        if not on_host["skipped_steps"]:
            self.after_step()
        self.iteration += 1
        self.count_step(on_host["skipped_steps"], {name: on_host[name] for name in values}, batch, unlabeled)
        # nnU-Net's own curves compare the training with the validation loss, so this is A's supervised loss
        return {"loss": on_host[self.loss_terms[0]], **on_host}

    def _compute_terms(self, labeled: dict, unlabeled: dict) -> tuple[dict[str, Term], dict[str, Tensor | float]]:
        """All terms of the loss, and the method's statistics.

        Apart from the update, so that outputs and features that no gradient needs are free by then.
        """
        step = self._begin_step(labeled, unlabeled)
        step.views = self.views(step)
        with self.autocast():
            for name in self.students():
                step.outputs[name] = ready_to_gather(self.forward(name, step.views[name]))
            self.after_forward(step)
            terms = self.supervised_terms(step)
        terms |= self.ssl_terms(step)
        self.before_backward(step, terms)
        return terms, step.statistics

    def _begin_step(self, labeled: dict, unlabeled: dict) -> Step:
        *levels, labeled_valid = to_device(labeled["target"], self.device)
        labeled_valid = labeled_valid[:, 0]
        return Step(
            # each is pinned: whatever the host makes of them would not be, and it would wait for the copy
            image=torch.cat([batch["data"].to(self.device, non_blocking=True) for batch in (labeled, unlabeled)]),
            target=self.labels.of_target(levels[0]).masked_fill(~labeled_valid, UNKNOWN),
            labeled_valid=labeled_valid,
            valid=to_device(unlabeled["target"], self.device)[:, 0] >= 0,
            progress=self.progress,
            labels=self.labels,
            target_levels=levels if self.enable_deep_supervision else levels[0],
            ignored_as_unlabeled=self.config.ignored_as_unlabeled and self.label_manager.has_ignore_label,
        )

    def _clip_gradients(self) -> Tensor:
        """Each network by itself, as nnU-Net does for its one."""
        modules = (self.network, *self.companions.values())
        return sum(nn.utils.clip_grad_norm_(module.parameters(), 12) for module in modules)

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
