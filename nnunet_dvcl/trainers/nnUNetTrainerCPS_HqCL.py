"""CPS with high-quality contrast of reliable voxels: row 2 of the paper's Table 2."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from nnunet_dvcl import distributed
from nnunet_dvcl.diagnostics import relative_gradients
from nnunet_dvcl.labels import UNKNOWN
from nnunet_dvcl.losses import HighQualityContrastiveLoss
from nnunet_dvcl.memory import ClassBank
from nnunet_dvcl.options import Count, Number, Positive, Share, Weight
from nnunet_dvcl.trainers.base import Features, FeaturesConfig, Panel, Reach, Step, Term
from nnunet_dvcl.trainers.nnUNetTrainerCPS import CPSConfig, nnUNetTrainerCPS
from nnunet_dvcl.voxels.draws import draw_per_class
from nnunet_dvcl.voxels.entropy_split import split_by_entropy


class HqCLConfig(FeaturesConfig, CPSConfig):
    """What HqCL adds. Defaults: the paper's where it gives one, else those that ``docs/`` gives reasons for."""

    contrastive_weight: Weight = 0.1  # λ_c of Eq. 3, for HqCL and DVCL. Paper
    contrastive_start: Share = 0.0  # share of training before HqCL and DVCL begin
    contrastive_rampup_fraction: Share = 0.0  # share of training over which λ_c rises then; 0: no ramp. Paper
    entropy_alpha: Number = 0.5  # α of Eq. 5: reliable up to mean + α · standard deviation. Paper
    num_anchors: Count = 256  # M of Eq. 10, anchors of a class. Paper
    num_negatives: Count = 50  # N of Eq. 10, negatives of an anchor. Paper
    temperature: Positive = 1.0  # σ of Eq. 10. Paper
    bank_capacity: Count = 4096  # anchors kept for the center P_c of Eq. 8 of a class


class Voxels(NamedTuple):
    """The voxels of one network that take part in the contrast; -1 in a class map: takes no part."""

    features: Tensor  # [B_l + B_u, F, *S], the decoder's last feature map
    anchors: Tensor  # [B_l + B_u, *S] int64, Eq. 7: the class that the voxel is an anchor of
    mistaken: Tensor  # [B_l, *S] int64, Eq. 9: the class that the voxel was wrongly predicted as
    unreliable: Tensor  # [B', *S] bool, Eq. 5, of the step's `unlabeled_patches`


class nnUNetTrainerCPS_HqCL(Features, nnUNetTrainerCPS):
    """CPS and HqCL: the entropy split of both networks' output and InfoNCE of reliable voxels, DVCL, Eq. 3-10."""

    config_class: ClassVar[type[HqCLConfig]] = HqCLConfig
    needs_float64 = True
    config: HqCLConfig
    reaches = nnUNetTrainerCPS.reaches | {"hqcl": Reach.of("A B head_A head_B", "contrasted")}
    panels = (
        Panel("entropy threshold τ [nats]", "τ [nats]", ("threshold_A", "threshold_B")),
        Panel("share of unlabeled voxels", "share", ("unreliable_A", "unreliable_B")),
        Panel("share of capacity filled", "share", ("bank_fill",)),
        Panel(
            "gradient of a term at the last decoder features [norm relative to the supervised one]",
            "relative norm",
            ("gradient_*",),
            log_scale=True,
        ),
    )

    def build_memory(self) -> dict[str, nn.Module]:
        self.hqcl = HighQualityContrastiveLoss(self.config.num_negatives, self.config.temperature)
        bank = ClassBank(self.labels.num_classes, self.config.bank_capacity, self.config.feature_dim)
        return super().build_memory() | {"bank": bank}

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        terms = super().ssl_terms(step)
        voxels = {name: self._select(step, name) for name in self.student_names}
        return terms | self.contrastive_terms(step, voxels)

    def before_backward(self, step: Step, terms: dict[str, Term]) -> None:
        """How hard each term pulls at the decoder's last features, in the first step of an epoch; nan in the others."""
        if self._do_i_compile():  # a compiled network has no path from its features to its logits
            return
        if self.config.sequential_twins:  # each gradient would run the networks again and hold all they compute
            return
        weighted = {name: term.weight * term.value for name, term in terms.items()}
        supervised = sum(weighted.pop(f"supervised_{name}") for name in self.student_names)
        if self.iteration % self.num_iterations_per_epoch == 0:
            scale = 1.0 if self.grad_scaler is None else self.grad_scaler.get_scale()
            gradients = relative_gradients(weighted, supervised, list(step.features.values()), scale)
        else:
            gradients = dict.fromkeys(weighted, float("nan"))
        step.record(**{f"gradient_{name}": value for name, value in gradients.items()})

    def contrastive_terms(self, step: Step, voxels: dict[str, Voxels]) -> dict[str, Term]:
        """The terms that λ_c weighs; they are 0 until `contrastive_start`."""
        started = self.contrast_has_started(step)
        value = self._high_quality_contrast(voxels) if started else torch.zeros((), device=self.device)
        bank = self.memory["bank"]
        step.record(bank_fill=bank.count.float().mean() / bank.capacity)
        return {"hqcl": Term.scaled(value, self.config.contrastive_weight, self.contrastive_rampup(step))}

    def contrast_has_started(self, step: Step) -> bool:
        return step.progress >= self.config.contrastive_start

    def contrastive_rampup(self, step: Step) -> float:
        """How far λ_c of Eq. 3 has risen; it does over `contrastive_rampup_fraction`."""
        return step.rampup(self.config.contrastive_rampup_fraction, self.config.contrastive_start)

    @torch.no_grad()
    def _select(self, step: Step, name: str) -> Voxels:
        """The entropy split (Eq. 4-6) and the roles that voxels play in the contrast (Eq. 7 and 9)."""
        unlabeled = step.unlabeled
        entropy = self.labels.entropy(step.unlabeled_patches(step.logits[name]))
        reliable, unreliable, threshold = split_by_entropy(entropy, self.config.entropy_alpha, unlabeled)
        step.record(
            **{f"unreliable_{name}": unreliable.sum() / step.num_unlabeled, f"threshold_{name}": threshold},
        )
        predicted = step.predicted(name)
        labeled = predicted[: step.num_labeled]
        correct, known = labeled == step.target, step.target != UNKNOWN
        anchors = torch.cat((correct, torch.zeros_like(step.valid)))
        step.unlabeled_patches(anchors).logical_or_(reliable)
        mistaken = labeled.where(known & ~correct, -1)
        return Voxels(step.features[name], predicted.where(anchors, -1), mistaken, unreliable)

    def _high_quality_contrast(self, voxels: dict[str, Voxels]) -> Tensor:
        """HqCL (Eq. 7-10): draws anchors and negatives over A and B, stores the anchors, scores against the centers."""
        bank = self.memory["bank"]
        anchors, anchor_mask = self._draw(voxels, {name: v.anchors for name, v in voxels.items()})
        negatives, negative_mask = self._draw(voxels, {name: v.mistaken for name, v in voxels.items()})
        classes = torch.arange(bank.num_classes, device=self.device)[:, None].where(anchor_mask, -1)
        bank.push(anchors.flatten(0, 1), classes.flatten())
        return self.hqcl(anchors, anchor_mask, *bank.centers(), negatives, negative_mask, self.shared_generator())

    def _draw(self, voxels: dict[str, Voxels], classes: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Up to M voxels of each class over both networks and all ranks: features [C, M, d] and mask [C, M]."""
        index, is_local = draw_per_class(
            torch.cat([c.flatten() for c in classes.values()]), self.memory["bank"].num_classes, self.config.num_anchors
        )
        per_network = classes["A"].numel()
        a, b = (self.project(name, v.features, index % per_network) for name, v in voxels.items())
        return distributed.merge_rows(torch.where((index < per_network)[..., None], a, b), is_local)

    def why_zero(self, term: str) -> str:
        if term == "hqcl":
            return self._why_no_contrast() or (
                "no class had anchors and wrongly predicted labeled voxels at once (Eq. 9: no mistakes, no negatives)"
            )
        return super().why_zero(term)

    def _why_no_contrast(self) -> str:
        """Empty where the contrast has begun."""
        start = self.config.contrastive_start
        waits = self.progress <= start > 0
        return f"ssl.contrastive_start = {start} of the training is not reached yet" if waits else ""
