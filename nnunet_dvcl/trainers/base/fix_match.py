"""The native host of two methods of contrast: one network that learns what it is confident of."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_dvcl.options import Share, choice
from nnunet_dvcl.trainers.base.host import Host, HostConfig
from nnunet_dvcl.trainers.base.step import Step


class FixMatchConfig(HostConfig):
    """What FixMatch adds. Defaults are as published."""

    cutmix_probability: Share = 0.0  # chance of an unlabeled patch to get a box of another one; 0: no mixing
    pseudo_label_loss: choice("ce", "nnunet") = "ce"  # cross entropy at full resolution, or nnU-Net's whole loss
    consistency_start: Share = 0.0  # share of training before pseudo-labels count
    rampup_fraction: Share = 0.0  # share of training over which λ_u rises then, by w(t); 0: no ramp
    confidence: Share = 0.95  # the least probability of a pseudo-label that counts


class FixMatch(Host):
    """A student's own labels of the weak view, where it is confident of them (Sohn et al., NeurIPS 2020).

    With `host="cps"` they are those of the other network.
    """

    native_teacher = "A"
    has_teacher = False
    config: FixMatchConfig

    @torch.no_grad()
    def accepted(self, step: Step, logits: Tensor) -> Tensor:
        return self.labels.class_probabilities(logits).amax(1) >= self.config.confidence
