"""Cross pseudo supervision: the twin network, and row 1 of the paper's Table 2."""

from __future__ import annotations

import secrets
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_dvcl.config import CPSConfig
from nnunet_dvcl.data import twin_views
from nnunet_dvcl.losses import gaussian_rampup
from nnunet_dvcl.networks import run_again_for_gradients
from nnunet_dvcl.trainers.base.nnUNetTrainerSSL import Step, Term, nnUNetTrainerSSL

# nnU-Net's supervised loss is Dice + CE, twice the paper's (Dice + CE)/2: doubling the other terms keeps its ratios
SUPERVISED_SCALE = 2.0


class nnUNetTrainerCPS(nnUNetTrainerSSL):
    """Two networks of one plan, each supervised by the labels and by the other's pseudo-labels: DVCL, Eq. 1-3.

    A and B see the same augmented image; only their initialization differs. With `independent_intensities` they see the
    same geometry in intensities of their own.
    """

    config_class: ClassVar[type[CPSConfig]] = CPSConfig
    config: CPSConfig

    def build_companions(self) -> dict[str, nn.Module]:
        seed = secrets.randbits(32) if self.config.seed is None else self.config.seed + 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return {"B": self.build_vanilla_network(self.enable_deep_supervision)}

    def students(self) -> dict[str, nn.Module]:
        return {"A": self.network, "B": self.companions["B"]}

    def get_training_transforms(self, *args, **kwargs):
        transforms = super().get_training_transforms(*args, **kwargs)
        return twin_views(transforms) if self.config.independent_intensities else transforms

    def views(self, image: Tensor) -> dict[str, Tensor]:
        if not self.config.independent_intensities:
            return super().views(image)
        return dict(zip(self.students(), image.chunk(2, dim=1), strict=True))

    def forward(self, name: str, image: Tensor) -> Tensor | list[Tensor]:
        """With `sequential_twins` a network keeps nothing for its gradients: it runs again when they are asked for.

        By then those of the terms are done, and after them B's, since autograd goes from the newest to the oldest. So
        the activations of A, of B and of the terms are never held together.
        """
        if self.config.sequential_twins:
            return run_again_for_gradients(self.students()[name], image)
        return super().forward(name, image)

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        a, b = (step.unlabeled_patches(logits) for logits in step.logits.values())
        unlabeled = step.unlabeled
        rampup = gaussian_rampup(step.progress, self.config.rampup_fraction)
        agree = step.unlabeled_patches(step.predicted("A") == step.predicted("B"))
        step.record(rampup=rampup, agreement=(agree & unlabeled).sum() / step.num_unlabeled)
        weight = SUPERVISED_SCALE * self.config.consistency_weight * rampup
        return {"cps": Term(self.labels.cross_pseudo_supervision(a, b, unlabeled, step.num_unlabeled), weight)}

    def why_zero(self, term: str) -> str:
        if term == "cps":
            return "every unlabeled patch was padding, or both networks are certain of the same class everywhere"
        return super().why_zero(term)
