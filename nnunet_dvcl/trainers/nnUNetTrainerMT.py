"""The mean teacher: a row of the paper's Table 1."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from nnunet_dvcl import distributed
from nnunet_dvcl.data.folders import num_channels
from nnunet_dvcl.losses import consistency
from nnunet_dvcl.options import Weight
from nnunet_dvcl.trainers.base import EMATeacher, EMATeacherConfig, Passes, Reach, Step, Term, nnUNetTrainerSSL


class MTConfig(EMATeacherConfig):
    """What the mean teacher adds."""

    teacher_noise: Weight = 0.1  # standard deviation of the noise on what the teacher sees, cut at twice that; 0: none


class nnUNetTrainerMT(EMATeacher, nnUNetTrainerSSL):
    """A student follows the average of its own weights: the mean teacher (Tarvainen & Valpola, NeurIPS 2017)."""

    config_class: ClassVar[type[MTConfig]] = MTConfig
    config: MTConfig
    reaches = {"consistency": Reach.of("A", "unlabeled")}
    passes = Passes(trained=1, forward=0.5)

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        image = step.unlabeled_patches(step.views["A"])
        student = self.labels.decisions(step.unlabeled_patches(step.logits["A"]))
        teacher = self.labels.decisions(self.teach(self.with_noise(image)))
        rampup = step.rampup(self.config.rampup_fraction)
        step.record(rampup=rampup)
        mask = self.compared(step, image).expand_as(student[:, 0])
        value = consistency(student, teacher, mask, distributed.mean(mask.sum()))
        return {"consistency": Term.scaled(value, self.config.consistency_weight, rampup)}

    def compared(self, step: Step, image: Tensor) -> Tensor:
        """Where the student follows, [B', 1, *S] or for each of R regions [B', R, *S] bool: on unlabeled voxels."""
        return step.unlabeled[:, None]

    def with_noise(self, image: Tensor) -> Tensor:
        """What the teacher sees: intensities + clamp(σ·N(0, 1), -2σ, 2σ), [B, channels, *S]; not a previous stage."""
        noise = self.config.teacher_noise * torch.randn_like(image).clamp(-2, 2)
        noise[:, num_channels(self.dataset_json) :] = 0.0
        return image + noise

    def why_zero(self, term: str) -> str:
        if term == "consistency":
            return "every unlabeled patch was padding, or student and teacher are equally certain everywhere"
        return super().why_zero(term)
