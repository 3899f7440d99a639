"""The part of a trainer that learns from pseudo-labels: made on patches as they are, or a weak view, learned mixed."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor, nn

from nnunet_dvcl import distributed
from nnunet_dvcl.data import WEAK_STRONG, make_views
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.labels import UNKNOWN, labels_of
from nnunet_dvcl.losses import pseudo_label_cross_entropy
from nnunet_dvcl.networks import full_resolution
from nnunet_dvcl.options import Share, Weight, choice
from nnunet_dvcl.trainers.base.nnUNetTrainerSSL import SSLConfig
from nnunet_dvcl.trainers.base.step import Output, Step, Term
from nnunet_dvcl.voxels.cutmix import CutMix, draw_cutmix


class PseudoLabelsConfig(SSLConfig):
    """What learning from pseudo-labels adds."""

    views: choice("same", "weak_strong") = "same"  # pseudo-labels are made on the student's view, or a weak one
    cutmix_probability: Share = 0.5  # chance of an unlabeled patch to get a box of another one; 0: no mixing
    pseudo_label_loss: choice("ce", "nnunet") = "nnunet"  # cross entropy at full resolution, or nnU-Net's whole loss
    consistency_weight: Weight = 1.0  # λ_u; 1: pseudo-labels weigh as much as labels
    consistency_start: Share = 0.05  # share of training before pseudo-labels count
    rampup_fraction: Share = 0.15  # share of training over which λ_u rises then, by w(t); 0: no ramp


class PseudoLabels:
    """Each student learns what its teacher says of the unlabeled patches.

    Teachers look at the patches, or at a weak view of them, without gradient and in the networks' training mode;
    students at the patches in which boxes have changed places between unlabeled ones (CutMix). Image, pseudo-label and
    mask of valid voxels move together. The loss is nnU-Net's own, on each level of deep supervision; voxels without a
    pseudo-label take no part in it.
    """

    config: PseudoLabelsConfig

    def teachers(self) -> dict[str, Callable[[Tensor], Output]]:
        """Student -> what gives its pseudo-labels, image to logits; none where a method has them from elsewhere."""
        raise NotImplementedError

    # ---------------------------------------------------------------- views

    def get_training_transforms(self, *args, **kwargs):
        transforms = super().get_training_transforms(*args, **kwargs)
        return make_views(transforms, WEAK_STRONG) if self.config.views == "weak_strong" else transforms

    def views(self, step: Step) -> dict[str, Tensor]:
        teachers = self.teachers()
        if not teachers:
            return super().views(step)
        weak, strong = step.image.chunk(2, dim=1) if self.config.views == "weak_strong" else (step.image, step.image)
        for name, teacher in teachers.items():
            self._label(step, name, teacher, weak)
        if self.config.cutmix_probability > 0:
            strong = self._mix(step, strong)
        return dict.fromkeys(self.student_names, strong)

    @torch.no_grad()
    def _label(self, step: Step, name: str, teacher: Callable[[Tensor], Output], weak: Tensor) -> None:
        """Writes into the step what a student's teacher says of the weak views; all of it moves with the boxes."""
        with self.autocast():
            step.pseudo_labels[name] = self.labels.predicted(full_resolution(teacher(step.unlabeled_patches(weak))))

    def _mix(self, step: Step, image: Tensor) -> Tensor:
        """The unlabeled patches with boxes of each other; pseudo-labels and valid voxels of the step likewise."""
        number = len(step.valid)
        mixing = draw_cutmix(number, step.valid.shape[1:], self.config.cutmix_probability, self.device)
        step.valid = mixing.mix(step.valid)
        for volumes in (step.pseudo_labels, step.taught_logits, step.taught_features):
            volumes.update((name, _with_boxes(volume, mixing)) for name, volume in volumes.items())
        return _with_boxes(image, mixing)

    # ---------------------------------------------------------------- loss

    def initialize(self) -> None:
        super().initialize()
        labels = self.label_manager
        self.label_manager = copy(labels)  # nnU-Net's loss leaves the voxels of an ignore label out: it gets one here
        if not labels.has_ignore_label:
            self.label_manager._ignore_label = max(labels.all_labels) + 1
        self._labels_and_unknown = labels_of(self.label_manager)
        self._loss_of_known: nn.Module = self._build_loss()
        self.label_manager = labels

    def _set_batch_size_and_oversample(self) -> None:
        super()._set_batch_size_and_oversample()
        number = self.config.unlabeled_batch_size or self.configuration_manager.batch_size
        of_the_batch = self.config.pseudo_label_loss == "nnunet" and self.configuration_manager.batch_dice
        if of_the_batch and number % distributed.world_size():
            raise UserError(
                f"A step has {number} unlabeled patches, expected a multiple of {distributed.world_size()}, the number "
                "of GPUs: nnU-Net's Dice of a whole batch needs as many on each. Change ssl.unlabeled_batch_size, or "
                'set ssl.pseudo_label_loss="ce", with nnunet_dvcl configure.'
            )

    def pseudo_label_term(self, step: Step) -> Term:
        """λ_u·w(t) and the loss of all students on the pseudo-labels of their teachers."""
        config = self.config
        rampup = step.rampup(config.rampup_fraction, config.consistency_start)
        step.record(rampup=rampup)
        if config.pseudo_label_loss == "ce":
            value = sum(self._cross_entropy(step, name) for name in self.student_names)
            return Term.scaled(value, config.consistency_weight, rampup)
        value = sum(self._nnunet_loss(step, name) for name in self.student_names)
        return Term(value, config.consistency_weight * rampup)  # on the scale of the supervised loss as it is

    def why_no_pseudo_labels(self) -> str:
        """The reason why the term was 0 for a whole epoch."""
        return "every unlabeled patch was padding, or students and teachers are certain of the same class everywhere"

    def _cross_entropy(self, step: Step, name: str) -> Tensor:
        labels = step.pseudo_labels[name]
        known = step.unlabeled & (labels != UNKNOWN)
        if self.labels.has_regions:
            labels = self.labels.to_target(labels)[:, : step.logits[name].shape[1]]
        logits = step.unlabeled_patches(step.logits[name])
        return pseudo_label_cross_entropy(logits, labels, known, self.num_compared(step, known))

    def num_compared(self, step: Step, known: Tensor) -> Tensor:
        """What the sum of the cross entropy is divided by, []; `known`, [B', *S], tells which voxels are in it.

        All unlabeled voxels: where few have a pseudo-label, the loss is small.
        """
        return step.num_unlabeled

    def _nnunet_loss(self, step: Step, name: str) -> Tensor:
        output = step.outputs[name]
        of_levels = isinstance(output, (list, tuple))
        output = [step.unlabeled_patches(level) for level in output] if of_levels else step.unlabeled_patches(output)
        known = step.pseudo_labels[name].where(step.unlabeled, UNKNOWN)
        with self.autocast():
            return self._loss_of_known(output, self._labels_and_unknown.to_target(known, like=output))


def _with_boxes(volume: Tensor, mixing: CutMix) -> Tensor:
    """The same volume, whose last patches are the unlabeled ones, with boxes of each other in these."""
    number = len(mixing.box)
    return torch.cat((volume[:-number], mixing.mix(volume[-number:])))
