"""The deep adversarial network: a row of the paper's Table 1."""

from __future__ import annotations

from nnunet_dvcl.trainers.base import Adversary, AdversaryConfig, Reach, Step, Term, nnUNetTrainerSSL


class nnUNetTrainerDAN(Adversary, nnUNetTrainerSSL):
    """An adversary takes segmentations of unlabeled images for those of labeled ones (Zhang et al., MICCAI 2017)."""

    config_class = AdversaryConfig
    config: AdversaryConfig
    reaches = {"adversarial": Reach.of("A", "unlabeled")}

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        maps = self.labels.channel_probabilities(step.logits["A"])
        rampup = step.rampup(self.config.rampup_fraction)
        step.record(rampup=rampup)
        return {"adversarial": Term.scaled(self.fool(step, maps), self.config.consistency_weight, rampup)}
