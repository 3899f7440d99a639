"""Cross pseudo supervision: the twin network, and row 1 of the paper's Table 2."""

from __future__ import annotations

import secrets

import torch
from torch import nn

from nnunet_dvcl.losses import cross_pseudo_supervision, gaussian_rampup
from nnunet_dvcl.trainers.nnUNetTrainerSSL import Step, Term, nnUNetTrainerSSL

# nnU-Net's supervised loss is Dice + CE, twice the paper's (Dice + CE)/2: doubling the other terms keeps its ratios
SUPERVISED_SCALE = 2.0


class nnUNetTrainerCPS(nnUNetTrainerSSL):
    """Two networks of one plan, each supervised by the labels and by the other's pseudo-labels: DVCL, Eq. 1-3.

    A and B see the same augmented image; only their initialization differs.
    """

    def build_companions(self) -> dict[str, nn.Module]:
        seed = secrets.randbits(32) if self.config.seed is None else self.config.seed + 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return {"B": self.build_vanilla_network(self.enable_deep_supervision)}

    def students(self) -> dict[str, nn.Module]:
        return {"A": self.network, "B": self.companions["B"]}

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        a, b = (logits[step.num_labeled :] for logits in step.logits.values())
        rampup = gaussian_rampup(step.progress, self.config.rampup_fraction)
        agree = (step.predicted("A") == step.predicted("B"))[step.num_labeled :]
        step.record(rampup=rampup, agreement=(agree & step.valid).sum() / step.valid.sum())
        weight = SUPERVISED_SCALE * self.config.consistency_weight * rampup
        return {"cps": Term(cross_pseudo_supervision(a, b, step.valid), weight)}

    def why_zero(self, term: str) -> str:
        if term == "cps":
            return "every unlabeled patch was padding, or both networks are certain of the same class everywhere"
        return super().why_zero(term)
