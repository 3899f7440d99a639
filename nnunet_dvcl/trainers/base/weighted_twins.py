"""The part of a trainer whose two networks learn from labels and from each other, with a weight for each class."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_dvcl import distributed
from nnunet_dvcl.losses import class_weighted as weighted
from nnunet_dvcl.memory import ClassShares
from nnunet_dvcl.trainers.base.nnUNetTrainerSSL import SSLConfig
from nnunet_dvcl.trainers.base.panels import Panel
from nnunet_dvcl.trainers.base.step import Output, Reach, Step, Term, patches_of
from nnunet_dvcl.trainers.base.twins import Twins


class WeightedTwins(Twins):
    """Twins, nnU-Net's loss with class weights, and cross pseudo supervision with them on labeled and unlabeled voxels.

    Weights are [K, R]: a voxel makes R decisions, each for one of K classes (`Labels.decisions`). Losses are means with
    these weights, so only their ratios count. ``self.memory["class_shares"]`` has the share of each class.
    """

    reaches: ClassVar = {"cps": Reach.of("A B", "present")}
    panels = (
        Panel("share of labeled and unlabeled voxels", "share", ("agreement",), first=True),
        Panel("highest class weight divided by the lowest", "ratio", ("weight_ratio_*",)),
    )
    config: SSLConfig

    def class_weights(self, name: str) -> Tensor:
        """The weights in the losses of a student, [K, R] without gradient; not all of a decision are 0."""
        raise NotImplementedError

    def followed(self, step: Step, name: str) -> Tensor:
        """Where a student learns from the other one, bool or 0 and 1, [B_l + B_u, 1 or R, *S]."""
        return step.present[:, None]

    def update_shares(self, step: Step, labeled: Tensor) -> None:
        """Updates ``self.memory["class_shares"]``: the mean over the steps so far of the labeled voxels.

        Args:
            step: its students have run.
            labeled: [K, R] int64, the labeled voxels of each class of all ranks.
        """
        self.memory["class_shares"].update(labeled, self.iteration / (self.iteration + 1))

    # ---------------------------------------------------------------- hooks

    def build_memory(self) -> dict[str, nn.Module]:
        shares = ClassShares(self.labels.num_options, self.labels.num_decisions)
        return super().build_memory() | {"class_shares": shares}

    @torch.no_grad()
    def after_forward(self, step: Step) -> None:
        super().after_forward(step)
        step.kept["decided"] = self.labels.decided(step.target)
        step.kept["counts"] = self.count(step.kept["decided"])
        self.update_shares(step, step.kept["counts"])

    def supervised_terms(self, step: Step) -> dict[str, Term]:
        labeled = slice(step.num_labeled)
        return {
            f"supervised_{name}": Term(
                self.class_weighted_loss(patches_of(output, labeled), step.target_levels, self.class_weights(name)), 1.0
            )
            for name, output in step.outputs.items()
        }

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        rampup = step.rampup(self.config.rampup_fraction)
        agree = (step.predicted("A") == step.predicted("B")) & step.present
        step.record(rampup=rampup, agreement=agree.sum() / distributed.mean(step.present.sum()))
        value = self._follow(step, "A", "B") + self._follow(step, "B", "A")
        return {"cps": Term.scaled(value, self.config.consistency_weight, rampup)}

    def why_zero(self, term: str) -> str:
        if term == "cps":
            return "no voxel was labeled or unlabeled, or both networks are certain of the same class everywhere"
        return super().why_zero(term)

    # ---------------------------------------------------------------- losses

    def count(self, decided: Tensor) -> Tensor:
        """The voxels of all ranks that decided for each class, [B, R, *S] in [-1, K) -> [K, R] int64."""
        return distributed.total(weighted.counts_by_class(decided, self.labels.num_options))

    def class_weighted_loss(self, output: Output, target: Output, weights: Tensor) -> Tensor:
        """nnU-Net's loss on each level of deep supervision, CE and Dice with a weight for each class."""
        if not isinstance(output, (list, tuple)):
            return self._loss_of_level(output, target, weights)
        levels = zip(self.loss.weight_factors, output, target, strict=True)
        return sum(factor * self._loss_of_level(*level, weights) for factor, *level in levels if factor != 0)

    def _loss_of_level(self, logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        labels, batch_dice = self.labels, self.configuration_manager.batch_dice
        decided = labels.decided_of_target(target)
        sums = weighted.overlaps(
            labels.foreground(labels.channel_probabilities(logits)), labels.inside(target), decided[:, :1] >= 0
        )
        if batch_dice:
            sums = distributed.merge_sums(sums.sum(1))
        dice = weighted.weighted_dice_loss(sums, labels.foreground_of(weights))
        return dice + self._cross_entropy(logits, decided, weighted.of_class(weights, decided))

    def _follow(self, step: Step, name: str, other: str) -> Tensor:
        """The cross entropy of a student with what the other predicts."""
        decided, followed = self.labels.decided(step.predicted(other)), self.followed(step, name)
        class_weights = self.class_weights(name)
        step.record(**{f"weight_ratio_{name}": (class_weights.amax(0) / class_weights.amin(0)).amax()})
        return self._cross_entropy(step.logits[name], decided, weighted.of_class(class_weights, decided) * followed)

    def _cross_entropy(self, logits: Tensor, decided: Tensor, weights: Tensor) -> Tensor:
        total = distributed.mean(weights.sum())
        return weighted.weighted_cross_entropy(self.labels.decision_logits(logits), decided, weights, total)
