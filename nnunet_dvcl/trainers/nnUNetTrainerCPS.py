"""Cross pseudo supervision: row 1 of the paper's Table 2."""

from __future__ import annotations

from typing import ClassVar

from nnunet_dvcl.losses import cross_pseudo_supervision
from nnunet_dvcl.trainers.base import Panel, Reach, Step, Term, Twins, TwinsConfig, nnUNetTrainerSSL


class CPSConfig(TwinsConfig):
    """CPS has no values beside those of its parts."""


class nnUNetTrainerCPS(Twins, nnUNetTrainerSSL):
    """Two networks of one plan, each supervised by the labels and by the other's pseudo-labels: DVCL, Eq. 1-3."""

    config_class: ClassVar[type[CPSConfig]] = CPSConfig
    config: CPSConfig
    reaches = {"cps": Reach.of("A B", "unlabeled")}
    panels = (Panel("share of unlabeled voxels", "share", ("agreement",)),)

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        config, unlabeled = self.config, step.unlabeled
        a, b = (step.unlabeled_patches(logits) for logits in step.logits.values())
        agree = step.unlabeled_patches(step.predicted("A") == step.predicted("B"))
        rampup = step.rampup(config.rampup_fraction)
        step.record(rampup=rampup, agreement=(agree & unlabeled).sum() / step.num_unlabeled)
        value = cross_pseudo_supervision(a, b, unlabeled, step.num_unlabeled, self.labels.has_regions)
        return {"cps": Term.scaled(value, config.consistency_weight, rampup)}

    def why_zero(self, term: str) -> str:
        if term == "cps":
            return "every unlabeled patch was padding, or both networks are certain of the same class everywhere"
        return super().why_zero(term)
