"""The calibrated label distribution: a row of the paper's Table 1."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_dvcl import distributed
from nnunet_dvcl.losses.class_weighted import of_class, power_weights, sums_by_class
from nnunet_dvcl.memory import ClassConfidence
from nnunet_dvcl.options import Share, Weight
from nnunet_dvcl.trainers.base import Panel, Passes, Step, TwinsConfig, WeightedTwins, nnUNetTrainerSSL


class CLDConfig(TwinsConfig):
    """What the calibrated label distribution adds."""

    class_weight_power: Weight = 1 / 3  # α of the class weights (n_max / n_c)^α; 0: equal weights
    sampling_power: Weight = 0.5  # β of the chance ((1 - conf_c) / max)^β of a voxel to be learned from; 0: every voxel
    confidence_decay: Share = 0.999  # share of the confidence conf_c of a class that stays in a step


class nnUNetTrainerCLD(WeightedTwins, nnUNetTrainerSSL):
    """CPS that weighs rare classes more and samples uncertain ones more often (Lin et al., MICCAI 2022)."""

    config_class: ClassVar[type[CLDConfig]] = CLDConfig
    config: CLDConfig
    passes = Passes(trained=2)
    panels = (Panel("share of labeled and unlabeled voxels", "share", ("followed_*",)),)

    def build_memory(self) -> dict[str, nn.Module]:
        size = self.labels.num_options, self.labels.num_decisions
        confidence = {f"confidence_{name}": ClassConfidence(*size, self.config.confidence_decay) for name in "AB"}
        return super().build_memory() | confidence

    def class_weights(self, name: str) -> Tensor:
        """The same in both networks."""
        return power_weights(self.memory["class_shares"].shares, self.config.class_weight_power)

    @torch.no_grad()
    def after_forward(self, step: Step) -> None:
        super().after_forward(step)
        for name in self.student_names:
            probabilities = self.labels.decisions(step.logits[name][: step.num_labeled])
            sums = distributed.total(sums_by_class(probabilities, step.kept["decided"]))
            self.memory[f"confidence_{name}"].update(sums, step.kept["counts"])

    @torch.no_grad()
    def followed(self, step: Step, name: str) -> Tensor:
        """A draw of the voxels: the less a network is sure of what it predicts on labeled ones, the more of them."""
        rates = self.memory[f"confidence_{name}"].rates(self.config.sampling_power)
        chance = of_class(rates, self.labels.decided(step.predicted(name)))
        drawn = (torch.rand_like(chance) < chance) & step.present[:, None]
        share = drawn.float().mean(1).sum() / distributed.mean(step.present.sum())
        step.record(**{f"followed_{name}": share})
        return drawn
