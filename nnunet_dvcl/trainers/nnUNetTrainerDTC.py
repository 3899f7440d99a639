"""Dual-task consistency: a row of the paper's Table 1."""

from __future__ import annotations

from typing import ClassVar

from nnunet_dvcl import distributed
from nnunet_dvcl.losses import dual_task_consistency
from nnunet_dvcl.options import Positive, Weight
from nnunet_dvcl.trainers.base import Reach, SignedDistances, SignedDistancesConfig, Step, Term, nnUNetTrainerSSL


class DTCConfig(SignedDistancesConfig):
    """What dual-task consistency adds."""

    consistency_weight: Weight = 1.0  # λ_d of the consistency of the two tasks
    steepness: Positive = 1500.0  # k of Eq. 2; the larger, the sharper is the surface that distances draw


class nnUNetTrainerDTC(SignedDistances, nnUNetTrainerSSL):
    """Signed distances and a segmentation that draw the same surface: dual-task consistency (Luo et al., AAAI 2021)."""

    config_class: ClassVar[type[DTCConfig]] = DTCConfig
    config: DTCConfig
    reaches = {
        "signed_distance": Reach.of("A head_distances", "labeled"),
        "dual_task": Reach.of("A head_distances", "present"),
    }

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        probabilities = self.labels.foreground(self.labels.channel_probabilities(step.logits["A"]))
        rampup, mask = step.rampup(self.config.rampup_fraction), step.present
        step.record(rampup=rampup)
        consistency = dual_task_consistency(
            step.kept["distances"], probabilities, mask, self.config.steepness, distributed.mean(mask.sum())
        )
        return {
            "signed_distance": self.signed_distance_term(step),
            "dual_task": Term.scaled(consistency / self.labels.num_decisions, self.config.consistency_weight, rampup),
        }
