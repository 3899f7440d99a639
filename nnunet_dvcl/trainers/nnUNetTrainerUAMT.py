"""The uncertainty-aware mean teacher: a row of the paper's Table 1."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_dvcl.losses import voxel_entropy
from nnunet_dvcl.networks import drop_channels
from nnunet_dvcl.options import Count, Share, option
from nnunet_dvcl.trainers.base import Panel, Passes, Step
from nnunet_dvcl.trainers.nnUNetTrainerMT import MTConfig, nnUNetTrainerMT


class UAMTConfig(MTConfig):
    """What the uncertainty of the teacher adds."""

    monte_carlo_passes: Count = 8  # T of Eq. 2, runs of the teacher with other noise and other channels dropped
    dropout: option(float, "a number of at least 0 and below 1", ge=0, lt=1) = 0.5  # chance of a channel to be dropped
    certain_entropy: Share = 0.75  # share of the highest entropy below which a voxel is certain, at first; 1 at the end


class nnUNetTrainerUAMT(nnUNetTrainerMT):
    """A mean teacher that is followed where it is certain (Yu et al., MICCAI 2019)."""

    config_class: ClassVar[type[UAMTConfig]] = UAMTConfig
    config: UAMTConfig
    panels = (Panel("share of unlabeled voxels", "share", ("certain",)),)
    passes = Passes(trained=1, forward=4.5)  # nine runs of the teacher, unlabeled patches alone

    def build_memory(self) -> dict[str, nn.Module]:
        memory = super().build_memory()
        if self.config.dropout > 0:
            for network in (self.network, memory["teacher"]):
                drop_channels(network, self.config.dropout)
        return memory

    @torch.no_grad()
    def compared(self, step: Step, image: Tensor) -> Tensor:
        """Unlabeled voxels whose entropy, of the mean of T runs of the teacher (Eq. 2), is below the threshold H."""
        passes = self.config.monte_carlo_passes
        mean = sum(self.labels.decisions(self.teach(self.with_noise(image))) for _ in range(passes)) / passes
        threshold = self.certain_share(step) * self.labels.max_entropy
        certain = (voxel_entropy(mean) < threshold) & super().compared(step, image)
        step.record(certain=certain.sum() / (step.num_unlabeled * certain.shape[1]))
        return certain

    def certain_share(self, step: Step) -> float:
        """H as a share of the highest entropy: rises from `certain_entropy` to 1, by w(t) over the whole training."""
        start = self.config.certain_entropy
        return start + (1 - start) * step.rampup(1.0)

    def why_zero(self, term: str) -> str:
        if term == "consistency":
            return f"the teacher was certain of no voxel (ssl.certain_entropy), or {super().why_zero(term)}"
        return super().why_zero(term)
