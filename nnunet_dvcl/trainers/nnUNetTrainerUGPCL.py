"""Uncertainty-guided pixel contrast: a row of the paper's Table 1."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import model_validator
from torch import Tensor, nn

from nnunet_dvcl import distributed
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.labels import UNKNOWN
from nnunet_dvcl.losses import pixel_contrast, voxel_entropy
from nnunet_dvcl.memory import ClassBank
from nnunet_dvcl.options import Count, Positive, Share, Weight, choice
from nnunet_dvcl.trainers.base import HostConfig, Panel, Passes, Reach, Step, Term, TwoDecoders, nnUNetTrainerSSL
from nnunet_dvcl.voxels.draws import draw_per_class


class UGPCLConfig(HostConfig):
    """What uncertainty-guided pixel contrast adds."""

    views: choice("same", "weak_strong") = "same"  # both decoders see one view
    cutmix_probability: Share = 0.0  # as published
    pseudo_label_loss: choice("ce", "nnunet") = "ce"  # with `host` "cps"
    consistency_weight: Weight = 0.1  # of the consistency of the decoders
    consistency_start: Share = 0.0  # as published
    rampup_fraction: Share = 0.3  # share of training over which consistency and certainty rise by w(t)
    second_weight: Weight = 0.4  # of the second decoder's supervised loss
    contrastive_weight: Weight = 0.1  # of the contrast
    contrastive_start: Share = 0.05  # share of training before the contrast begins
    certain_entropy: Share = 0.75  # share of the highest entropy below which a voxel is certain, at first; 1 at the end
    num_anchors: Count = 64  # anchors of a class, half of them wrongly predicted
    temperature: Positive = 0.07  # τ of the contrast
    bank_capacity: Count = 256  # means kept of a class

    @model_validator(mode="after")
    def _check_views(self) -> UGPCLConfig:
        if self.host == "native" and (self.views != "same" or self.cutmix_probability > 0):
            raise UserError(
                "ssl.views and ssl.cutmix_probability ask for views of their own, which the two decoders of UGPCL, on "
                'one encoder, cannot have. Leave them out, or set ssl.host="cps".'
            )
        return self


class nnUNetTrainerUGPCL(TwoDecoders, nnUNetTrainerSSL):
    """Two decoders that agree, and contrast of voxels that they are certain of: UGPCL (Wang et al., IJCAI 2022)."""

    config_class: ClassVar[type[UGPCLConfig]] = UGPCLConfig
    needs_float64 = True
    config: UGPCLConfig
    passes = Passes(trained=1.5)  # one encoder, two decoders
    reaches = {"consistency": Reach.of("A B", "unlabeled"), "contrast": Reach.of("A B head_A head_B", "present")}
    panels = (Panel("share of unlabeled voxels", "share", ("certain",)),)

    def read_config(self) -> UGPCLConfig:
        config = super().read_config()
        if config.host == "cps":
            self.reaches = {"pseudo_labels": Reach.of("A B", "unlabeled"), "contrast": self.reaches["contrast"]}
        return config

    def supervised_terms(self, step: Step) -> dict[str, Term]:
        terms = super().supervised_terms(step)
        weight = 1.0 if self.config.host == "cps" else self.config.second_weight
        return terms | {"supervised_B": terms["supervised_B"]._replace(weight=weight)}

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        self.certain_classes(step)  # logged from the first step on
        if self.config.host == "cps":
            return super().ssl_terms(step)
        a, b = (self.labels.decisions(step.unlabeled_patches(step.logits[name])) for name in self.student_names)
        rampup = step.rampup(self.config.rampup_fraction)
        step.record(rampup=rampup)
        distance = step.mean_over_unlabeled((a - b).square().sum(1).mean(1) / 2)
        consistency = Term.scaled(distance, self.config.consistency_weight, rampup)
        return {"consistency": consistency, "contrast": self.contrast_term(step)}

    @torch.no_grad()
    def certain_classes(self, step: Step) -> Tensor:
        """Truth, and where the mean of both predictions is certain, its class; [B_l + B_u, *S] int64, -1: neither."""
        if "certain" not in step.kept:
            a, b = (step.unlabeled_patches(step.logits[name]).float() for name in self.student_names)
            entropy = voxel_entropy((self.labels.decisions(a) + self.labels.decisions(b)) / 2).mean(1)
            start = self.config.certain_entropy
            share = start + (1 - start) * step.rampup(self.config.rampup_fraction)
            certain = (entropy < share * self.labels.max_entropy) & step.unlabeled
            step.record(certain=certain.sum() / step.num_unlabeled)
            labels = self.labels.predicted((a + b) / 2).where(certain, UNKNOWN)
            step.kept["certain"] = self.known_classes(step, labels)
        return step.kept["certain"]

    def build_memory(self) -> dict[str, nn.Module]:
        size = self.labels.num_classes, self.config.bank_capacity, self.config.feature_dim
        return super().build_memory() | {f"means_{name}": ClassBank(*size) for name in self.student_names}

    def contrast(self, step: Step, name: str) -> Tensor:
        """Anchors, half of them wrongly predicted, against the means that each class had in the latest steps."""
        classes, bank = self.certain_classes(step), self.memory[f"means_{name}"]
        wrong, half = step.predicted(name) != classes, -(-self.config.num_anchors // 2)
        sides = [classes.where(side, UNKNOWN).flatten() for side in (wrong, ~wrong)]
        draws = zip(*(draw_per_class(side, bank.num_classes, half) for side in sides), strict=True)
        index, is_local = (torch.cat(parts, 1) for parts in draws)
        anchors, mask = distributed.merge_rows(self.project(name, step.features[name], index), is_local)
        number = mask.sum(1)
        means = anchors.detach().masked_fill(~mask[..., None], 0.0).sum(1) / number.clamp(min=1)[:, None]
        bank.push(means, torch.arange(bank.num_classes, device=self.device).where(number > 0, UNKNOWN))
        keys, filled = bank.rows()
        return pixel_contrast(anchors, mask, keys, filled, self.config.temperature)
