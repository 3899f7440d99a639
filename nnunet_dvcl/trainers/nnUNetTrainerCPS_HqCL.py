"""CPS with high-quality contrast of reliable voxels: row 2 of the paper's Table 2."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from nnunet_dvcl import distributed
from nnunet_dvcl.config import HqCLConfig
from nnunet_dvcl.diagnostics import relative_gradients
from nnunet_dvcl.labels import UNKNOWN
from nnunet_dvcl.losses import HighQualityContrastiveLoss, gaussian_rampup
from nnunet_dvcl.memory import ClassBank
from nnunet_dvcl.networks import FeatureHead, FeatureTap, last_segmentation_layer
from nnunet_dvcl.trainers.base.nnUNetTrainerSSL import Step, Term
from nnunet_dvcl.trainers.nnUNetTrainerCPS import SUPERVISED_SCALE, nnUNetTrainerCPS
from nnunet_dvcl.voxels.gathering import gather_rows
from nnunet_dvcl.voxels.sampling import draw_per_class, split_by_entropy


class Voxels(NamedTuple):
    """The voxels of one network that take part in the contrast; -1 in a class map: takes no part."""

    features: Tensor  # [B_l + B_u, F, *S], the decoder's last feature map
    anchors: Tensor  # [B_l + B_u, *S] int64, Eq. 7: the class that the voxel is an anchor of
    mistaken: Tensor  # [B_l, *S] int64, Eq. 9: the class that the voxel was wrongly predicted as
    unreliable: Tensor  # [B', *S] bool, Eq. 5, of the step's `unlabeled_patches`


class nnUNetTrainerCPS_HqCL(nnUNetTrainerCPS):
    """CPS and HqCL: the entropy split of both networks' output and InfoNCE of reliable voxels, DVCL, Eq. 3-10."""

    config_class: ClassVar[type[HqCLConfig]] = HqCLConfig
    config: HqCLConfig

    def build_companions(self) -> dict[str, nn.Module]:
        companions = super().build_companions()
        networks = {"A": self.network, "B": companions["B"]}
        self.taps = {name: FeatureTap(network, self._do_i_compile()) for name, network in networks.items()}
        heads = {
            f"head_{name}": FeatureHead(last_segmentation_layer(network).in_channels, self.config.feature_dim)
            for name, network in networks.items()
        }
        return companions | heads

    def build_memory(self) -> dict[str, nn.Module]:
        self.hqcl = HighQualityContrastiveLoss(self.config.num_negatives, self.config.temperature)
        return {"bank": ClassBank(self.labels.num_classes, self.config.bank_capacity, self.config.feature_dim)}

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        terms = super().ssl_terms(step)
        voxels = {name: self._select(step, name, self.taps[name].pop()) for name in self.taps}
        step.features.update((name, v.features) for name, v in voxels.items())
        return terms | self.contrastive_terms(step, voxels)

    def before_backward(self, step: Step, terms: dict[str, Term]) -> None:
        """How hard each term pulls at the decoder's last features, in the first step of an epoch; nan in the others."""
        if self._do_i_compile():  # a compiled network has no path from its features to its logits
            return
        if self.config.sequential_twins:  # each gradient would run the networks again and hold all they compute
            return
        weighted = {name: term.weight * term.value for name, term in terms.items()}
        supervised = sum(weighted.pop(f"supervised_{name}") for name in self.taps)
        if self.iteration % self.num_iterations_per_epoch == 0:
            scale = 1.0 if self.grad_scaler is None else self.grad_scaler.get_scale()
            gradients = relative_gradients(weighted, supervised, list(step.features.values()), scale, distributed.total)
        else:
            gradients = dict.fromkeys(weighted, float("nan"))
        step.record(**{f"gradient_{name}": value for name, value in gradients.items()})

    def contrastive_terms(self, step: Step, voxels: dict[str, Voxels]) -> dict[str, Term]:
        """The terms that λ_c weighs; they are 0 until `contrastive_start`."""
        started = self.contrast_has_started(step)
        value = self._high_quality_contrast(voxels) if started else torch.zeros((), device=self.device)
        bank = self.memory["bank"]
        step.record(bank_fill=bank.count.float().mean() / bank.capacity)
        return {"hqcl": Term(value, self.contrastive_weight(step))}

    def contrast_has_started(self, step: Step) -> bool:
        return step.progress >= self.config.contrastive_start

    def contrastive_weight(self, step: Step) -> float:
        """λ_c of Eq. 3 on the scale of the supervised loss; it rises over `contrastive_rampup_fraction`."""
        rampup = gaussian_rampup(
            max(step.progress - self.config.contrastive_start, 0.0), self.config.contrastive_rampup_fraction
        )
        return SUPERVISED_SCALE * self.config.contrastive_weight * rampup

    @torch.no_grad()
    def _select(self, step: Step, name: str, features: Tensor) -> Voxels:
        """The entropy split (Eq. 4-6) and the roles that voxels play in the contrast (Eq. 7 and 9)."""
        unlabeled = step.unlabeled
        entropy = self.labels.entropy(step.unlabeled_patches(step.logits[name]))
        reliable, unreliable, threshold = split_by_entropy(
            entropy, self.config.entropy_alpha, unlabeled, distributed.total
        )
        step.record(
            **{f"unreliable_{name}": unreliable.sum() / step.num_unlabeled, f"threshold_{name}": threshold},
        )
        predicted = step.predicted(name)
        labeled = predicted[: step.num_labeled]
        correct, known = labeled == step.target, step.target != UNKNOWN
        anchors = torch.cat((correct, torch.zeros_like(step.valid)))
        step.unlabeled_patches(anchors).logical_or_(reliable)
        return Voxels(features, predicted.where(anchors, -1), labeled.where(known & ~correct, -1), unreliable)

    def _high_quality_contrast(self, voxels: dict[str, Voxels]) -> Tensor:
        """HqCL (Eq. 7-10): draws anchors and negatives over A and B, stores the anchors, scores against the centers."""
        bank = self.memory["bank"]
        anchors, anchor_mask = self._draw(voxels, {name: v.anchors for name, v in voxels.items()})
        negatives, negative_mask = self._draw(voxels, {name: v.mistaken for name, v in voxels.items()})
        classes = torch.arange(bank.num_classes, device=self.device)[:, None].where(anchor_mask, -1)
        bank.push(anchors.flatten(0, 1), classes.flatten())
        return self.hqcl(anchors, anchor_mask, *bank.centers(), negatives, negative_mask)

    def _draw(self, voxels: dict[str, Voxels], classes: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Up to M voxels of each class over both networks and all ranks: features [C, M, d] and mask [C, M]."""
        index, here = draw_per_class(
            torch.cat([c.flatten() for c in classes.values()]),
            self.memory["bank"].num_classes,
            self.config.num_anchors,
            places=distributed.places,
        )
        per_network = classes["A"].numel()
        a, b = (self.project(name, v.features, index % per_network) for name, v in voxels.items())
        return distributed.join(torch.where((index < per_network)[..., None], a, b), here)

    def project(self, name: str, volume: Tensor, index: Tensor) -> Tensor:
        """Features r of single voxels by the head of a network: sampled first, projected after, in float32."""
        return self.companions[f"head_{name}"](gather_rows(volume, index).float())

    def why_zero(self, term: str) -> str:
        if term != "cps" and self.progress <= self.config.contrastive_start > 0:
            return f"ssl.contrastive_start = {self.config.contrastive_start} of the training is not reached yet"
        if term == "hqcl":
            return (
                "no class had anchors and wrongly predicted labeled voxels at once (Eq. 9: no mistakes, no negatives)"
            )
        return super().why_zero(term)
