"""The part of a trainer that has a teacher: the running average of a student's weights."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_dvcl.networks import unwrap
from nnunet_dvcl.options import Share
from nnunet_dvcl.trainers.base.checkpoint import Weights
from nnunet_dvcl.trainers.base.nnUNetTrainerSSL import SSLConfig


class EMATeacherConfig(SSLConfig):
    """What an averaged teacher adds."""

    teacher_decay: Share = 0.99  # share of the teacher that stays in a step; less in the first steps


class EMATeacher:
    """``self.memory["teacher"]``: A's parameters averaged over the steps (Tarvainen & Valpola, NeurIPS 2017).

    Its buffers are A's. It never gets a gradient, is saved with the memories, and can be exported.
    """

    has_teacher: ClassVar[bool] = True  # a method may have it in some configurations alone
    config: EMATeacherConfig

    def build_memory(self) -> dict[str, nn.Module]:
        if not self.has_teacher:
            return super().build_memory()
        teacher = self.build_vanilla_network(enable_deep_supervision=False).requires_grad_(False)
        teacher.load_state_dict(unwrap(self.network).state_dict())
        self._run_teacher = torch.compile(teacher) if self._do_i_compile() else teacher
        return super().build_memory() | {"teacher": teacher}

    @torch.no_grad()
    def teach(self, image: Tensor) -> Tensor:
        """The teacher's logits at full resolution, [B, C, *S], without gradient; in the network's training mode."""
        with self.autocast():
            return self._run_teacher(image)

    def after_step(self) -> None:
        super().after_step()
        decay = min(self.config.teacher_decay, 1 - 1 / (self.iteration + 1))
        for average, student in self.averages().items():
            self._average(self.memory[average], unwrap(student), decay)

    def averages(self) -> dict[str, nn.Module]:
        """Name of a memory -> the module that it is the average of."""
        return {"teacher": self.network} if self.has_teacher else {}

    @torch.no_grad()
    def _average(self, teacher: nn.Module, student: nn.Module, decay: float) -> None:
        torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - decay)
        for averaged, current in zip(teacher.buffers(), student.buffers(), strict=True):
            averaged.copy_(current)

    def networks(self) -> dict[str, nn.Module]:
        return super().networks() | ({"teacher": self.memory["teacher"]} if self.has_teacher else {})

    @classmethod
    def saved_networks(cls, checkpoint: dict) -> dict[str, Weights]:
        memory, prefix = checkpoint["ssl_state"]["memory"], "teacher."
        weights = {key.removeprefix(prefix): value for key, value in memory.items() if key.startswith(prefix)}
        return super().saved_networks(checkpoint) | ({"teacher": weights} if weights else {})
