"""Dual-debiased heterogeneous co-training: a row of the paper's Table 1."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_dvcl import distributed
from nnunet_dvcl.labels import UNKNOWN
from nnunet_dvcl.losses import logarithmic_weights
from nnunet_dvcl.losses.class_weighted import soft_dice, sums_by_class
from nnunet_dvcl.memory import ClassDifficulty
from nnunet_dvcl.options import Count, Share, Weight, option
from nnunet_dvcl.trainers.base import Passes, Step, TwinsConfig, WeightedTwins, nnUNetTrainerSSL


class DHCConfig(TwinsConfig):
    """What the two ways of weighing classes add."""

    distribution_decay: Share = 0.99  # share of the classes' shares that stays in a step, after the first epoch
    difficulty_memory: Count = 50  # τ, steps over which what was learned and unlearned of a class is averaged
    difficulty_power: Weight = 0.2  # α of (unlearned / learned)^α
    lowest_class_weight: option(float, "a number above 0 and up to 1", gt=0, le=1) = 0.1  # where the highest is 1


class nnUNetTrainerDHC(WeightedTwins, nnUNetTrainerSSL):
    """CPS of a network that weighs difficult classes more with one that weighs rare ones (Wang & Li, MICCAI 2023)."""

    config_class: ClassVar[type[DHCConfig]] = DHCConfig
    config: DHCConfig
    passes = Passes(trained=2)

    def build_memory(self) -> dict[str, nn.Module]:
        size, config = (self.labels.num_options, self.labels.num_decisions), self.config
        difficulty = ClassDifficulty(*size, config.difficulty_memory, config.difficulty_power)
        return super().build_memory() | {"difficulty": difficulty}

    def class_weights(self, name: str) -> Tensor:
        """Of network A by difficulty (DiffDW), of B by rarity (DistDW)."""
        lowest = self.config.lowest_class_weight
        if name == "A":
            return self.memory["difficulty"].difficulty().clamp(min=lowest)
        return logarithmic_weights(self.memory["class_shares"].shares, lowest)

    @torch.no_grad()
    def update_shares(self, step: Step, labeled: Tensor) -> None:
        """In the first epoch those of the labeled voxels so far, then slowly those of what B predicts elsewhere."""
        if self.iteration < self.num_iterations_per_epoch:
            super().update_shares(step, labeled)
            return
        predicted = step.unlabeled_patches(step.predicted("B")).masked_fill(~step.unlabeled, UNKNOWN)
        self.memory["class_shares"].update(self.count(self.labels.decided(predicted)), self.config.distribution_decay)

    @torch.no_grad()
    def after_forward(self, step: Step) -> None:
        super().after_forward(step)
        decided, counts = step.kept["decided"], step.kept["counts"]
        probabilities = self.labels.decisions(step.logits["A"][: step.num_labeled])
        both = sums_by_class(probabilities, decided)
        everywhere = probabilities.masked_fill(decided[:, None] < 0, 0).transpose(0, 2).flatten(2).sum(2).T
        both, everywhere = distributed.total(torch.stack((both, everywhere)))
        dice = soft_dice(torch.stack((both, everywhere, counts.to(both.dtype))))
        self.memory["difficulty"].update(dice, counts > 0)
