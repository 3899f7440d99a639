"""The part of a method of contrast that stands on one of two hosts: the base of its own paper, or CPS."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_dvcl.labels import UNKNOWN
from nnunet_dvcl.networks import FeatureTap, full_resolution, unwrap
from nnunet_dvcl.options import Share, Weight, choice
from nnunet_dvcl.trainers.base.ema_teacher import EMATeacher, EMATeacherConfig
from nnunet_dvcl.trainers.base.features import Features, FeaturesConfig
from nnunet_dvcl.trainers.base.nnUNetTrainerSSL import SSLConfig
from nnunet_dvcl.trainers.base.panels import Panel
from nnunet_dvcl.trainers.base.pseudo_labels import PseudoLabels, PseudoLabelsConfig
from nnunet_dvcl.trainers.base.step import Output, Reach, Step, Term
from nnunet_dvcl.trainers.base.twins import SecondNetwork
from nnunet_dvcl.voxels.gathering import gather_rows


class HostConfig(FeaturesConfig, PseudoLabelsConfig, EMATeacherConfig):
    """What a method that stands on one of two hosts adds."""

    views: choice("same", "weak_strong") = "weak_strong"  # as the papers: a label of a weak view
    host: choice("native", "cps") = "native"  # what the contrast stands on: the base of its paper, or two networks
    contrastive_weight: Weight = 1.0  # of the contrast, as its paper gives it
    contrastive_start: Share = 0.0  # share of training before the contrast begins


class Host(Features, PseudoLabels, EMATeacher, SecondNetwork):
    """Students, what teaches each of them, and what a teacher says of all weak views: its logits and features.

    On its native host a method has one network, which learns from the running average of its weights, head included,
    or from itself (`native_teacher`). With `host="cps"` it has two, each the other's teacher. A method brings
    `contrast`, and may leave out pseudo-labels by `accepted`.
    """

    student_names: ClassVar[tuple[str, ...]] = ("A",)
    native_teacher: ClassVar[str] = "teacher"  # or "A"
    panels = (Panel("share of unlabeled voxels", "share", ("accepted",)),)
    config: HostConfig

    def contrast(self, step: Step, name: str) -> Tensor:
        """The contrast of a student's features, []."""
        raise NotImplementedError

    def accepted(self, step: Step, logits: Tensor) -> Tensor:
        """Which of a teacher's labels count, [B', C, *S] -> [B', *S] bool; the others are unknown."""
        return torch.ones_like(logits[:, 0], dtype=torch.bool)

    # ---------------------------------------------------------------- hosts

    def read_config(self) -> SSLConfig:
        config = super().read_config()
        if config.host == "cps":
            self.student_names, self.has_teacher = ("A", "B"), False
            self.reaches = {
                term: Reach(modules | {name.replace("A", "B") for name in modules}, voxels)
                for term, (modules, voxels) in self.reaches.items()
            }
        return config

    def teacher_of(self, name: str) -> str:
        """What teaches a student: another one, itself, or "teacher"."""
        return {"A": "B", "B": "A"}[name] if self.config.host == "cps" else self.native_teacher

    def teachers(self) -> dict[str, Callable[[Tensor], Output]]:
        students = self.students()
        teachers = {name: self.teacher_of(name) for name in self.student_names}
        return {name: students.get(of, self.teach) for name, of in teachers.items()}

    @property
    def learns_from_average(self) -> bool:
        return self.has_teacher and self.native_teacher == "teacher"

    def build_memory(self) -> dict[str, nn.Module]:
        memory = super().build_memory()
        if self.learns_from_average:
            memory["teacher_head"] = deepcopy(self.companions["head_A"]).requires_grad_(False)
            self.teacher_tap = FeatureTap(memory["teacher"], self._do_i_compile())
        return memory

    def initialize(self) -> None:
        super().initialize()
        if self.learns_from_average:  # on several GPUs the ranks' heads have become those of rank 0 meanwhile
            self.memory["teacher_head"].load_state_dict(unwrap(self.companions["head_A"]).state_dict())

    def averages(self) -> dict[str, nn.Module]:
        heads = {"teacher_head": self.companions["head_A"]} if self.learns_from_average else {}
        return super().averages() | heads

    # ---------------------------------------------------------------- what a teacher says

    @torch.no_grad()
    def _label(self, step: Step, name: str, teacher: Callable[[Tensor], Output], weak: Tensor) -> None:
        with self.autocast():
            logits = full_resolution(teacher(weak))
        tap = self.teacher_tap if self.teacher_of(name) == "teacher" else self.taps[self.teacher_of(name)]
        step.taught_logits[name], step.taught_features[name] = logits, tap.pop()
        unlabeled = step.unlabeled_patches(logits)
        accepted = self.accepted(step, unlabeled)
        step.pseudo_labels[name] = self.labels.predicted(unlabeled).masked_fill(~accepted, UNKNOWN)

    @torch.no_grad()
    def project_taught(self, step: Step, name: str, index: Tensor) -> Tensor:
        """Features of single voxels as a student's teacher has them; as `project`, without gradient."""
        teacher = self.teacher_of(name)
        head = self.memory["teacher_head"] if teacher == "teacher" else unwrap(self.companions[f"head_{teacher}"])
        return head(gather_rows(step.taught_features[name], index).float())

    @torch.no_grad()
    def taught_probabilities(self, step: Step, name: str, index: Tensor) -> Tensor:
        """How likely each class is at single voxels, as a student's teacher says: [Q] -> [Q, num_classes] float32."""
        return self.labels.class_probabilities(gather_rows(step.taught_logits[name], index).float())

    def known_classes(self, step: Step, pseudo_labels: Tensor) -> Tensor:
        """Truth, and labels of unlabeled voxels, [B', *S], in one class map, [B_l + B_u, *S] int64; -1: neither."""
        classes = torch.cat((step.target, torch.full_like(step.valid, UNKNOWN, dtype=torch.int64)))
        of_patches = step.unlabeled_patches(classes)
        of_patches.copy_(pseudo_labels.where(step.unlabeled, of_patches))
        return classes

    # ---------------------------------------------------------------- terms

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        accepted = sum((labels != UNKNOWN) & step.unlabeled for labels in step.pseudo_labels.values())
        step.record(accepted=accepted.sum() / (step.num_unlabeled * len(self.student_names)))
        return {"pseudo_labels": self.pseudo_label_term(step), "contrast": self.contrast_term(step)}

    def contrast_term(self, step: Step) -> Term:
        """Its weight and the sum over the students; 0 until `contrastive_start`."""
        value = torch.zeros((), device=self.device)
        if step.progress >= self.config.contrastive_start:
            value = sum(self.contrast(step, name) for name in self.student_names)
        return Term.scaled(value, self.config.contrastive_weight)

    def why_zero(self, term: str) -> str:
        if term == "pseudo_labels":
            return f"no pseudo-label was accepted, or {self.why_no_pseudo_labels()}"
        if term == "contrast" and self.progress <= self.config.contrastive_start:
            return f"ssl.contrastive_start = {self.config.contrastive_start} of the training is not reached yet"
        return super().why_zero(term)
