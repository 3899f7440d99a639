"""The shape-aware segmentation network: a row of the paper's Table 1."""

from __future__ import annotations

from typing import ClassVar

from nnunet_dvcl.options import Weight
from nnunet_dvcl.trainers.base import (
    Adversary,
    AdversaryConfig,
    Reach,
    SignedDistances,
    SignedDistancesConfig,
    Step,
    Term,
    nnUNetTrainerSSL,
)


class SASSNetConfig(SignedDistancesConfig, AdversaryConfig):
    """What shape-awareness adds."""

    consistency_weight: Weight = 0.01  # of the term that fools the adversary


class nnUNetTrainerSASSNet(SignedDistances, Adversary, nnUNetTrainerSSL):
    """An adversary takes signed distances in unlabeled images for those in labeled ones (Li et al., MICCAI 2020)."""

    config_class: ClassVar[type[SASSNetConfig]] = SASSNetConfig
    config: SASSNetConfig
    reaches = {
        "signed_distance": Reach.of("A head_distances", "labeled"),
        "adversarial": Reach.of("A head_distances", "unlabeled"),
    }

    @property
    def num_map_channels(self) -> int:
        return self.labels.num_foreground

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        rampup = step.rampup(self.config.rampup_fraction)
        step.record(rampup=rampup)
        fooled = self.fool(step, step.kept["distances"])
        return {
            "signed_distance": self.signed_distance_term(step),
            "adversarial": Term.scaled(fooled, self.config.consistency_weight, rampup),
        }
