"""DVCL: distance-aware voxel-wise contrastive learning, row 5 of the paper's Table 2."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from nnunet_dvcl.config import DVCLConfig
from nnunet_dvcl.losses import DistanceAwareContrastiveLoss, HighQualityContrastiveLoss, voxel_entropy
from nnunet_dvcl.memory import ClassBank, FeatureQueue
from nnunet_dvcl.networks import FeatureHead, FeatureTap, last_segmentation_layer
from nnunet_dvcl.sampling import draw_per_class, draw_voxels, gather_rows, split_by_entropy
from nnunet_dvcl.trainers.nnUNetTrainerCPS import SUPERVISED_SCALE, nnUNetTrainerCPS
from nnunet_dvcl.trainers.nnUNetTrainerSSL import Step, Term


class Voxels(NamedTuple):
    """The voxels of one network that take part in the contrast; -1 in a class map: takes no part."""

    anchors: Tensor  # [B_l + B_u, *S] int64, Eq. 7: the class that the voxel is an anchor of
    mistaken: Tensor  # [B_l, *S] int64, Eq. 9: the class that the voxel was wrongly predicted as
    unreliable: Tensor  # [B_u, *S] bool, Eq. 5


class nnUNetTrainerDVCL(nnUNetTrainerCPS):
    """CPS, high-quality contrast of reliable voxels (HqCL) and distance-aware contrast of unreliable ones: Eq. 3-19."""

    config_class: ClassVar[type[DVCLConfig]] = DVCLConfig
    config: DVCLConfig

    def build_companions(self) -> dict[str, nn.Module]:
        companions = super().build_companions()
        networks = {"A": self.network, "B": companions["B"]}
        self.taps = {name: FeatureTap(network) for name, network in networks.items()}
        heads = {
            f"head_{name}": FeatureHead(last_segmentation_layer(network).in_channels, self.config.feature_dim)
            for name, network in networks.items()
        }
        return companions | heads

    def build_memory(self) -> dict[str, nn.Module]:
        config, num_classes = self.config, self.label_manager.num_segmentation_heads
        self.hqcl = HighQualityContrastiveLoss(config.num_negatives, config.temperature)
        self.dvcl = DistanceAwareContrastiveLoss(
            config.num_neighbors, config.num_outsiders, config.outlier_neighbors, config.ordinary_affinity
        )
        return {
            "bank": ClassBank(num_classes, config.bank_capacity, config.feature_dim),
            "queue": FeatureQueue(config.queue_capacity, features=config.feature_dim, probabilities=num_classes),
        }

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        terms = super().ssl_terms(step)
        features = {name: tap.pop() for name, tap in self.taps.items()}
        voxels = {name: self._select(step, name) for name in features}
        if step.progress < self.config.contrastive_start:
            hqcl = dvcl = torch.zeros((), device=self.device)
        else:
            hqcl = self._high_quality_contrast(features, voxels)
            dvcl = self._distance_aware_contrast(step, features, voxels)
        bank, queue = self.memory["bank"], self.memory["queue"]
        step.record(bank_fill=bank.count.float().mean() / bank.capacity, queue_fill=queue.count / queue.capacity)
        weight = SUPERVISED_SCALE * self.config.contrastive_weight
        return terms | {"hqcl": Term(hqcl, weight), "dvcl": Term(dvcl, weight * self.config.distance_weight)}

    @torch.no_grad()
    def _select(self, step: Step, name: str) -> Voxels:
        """The entropy split (Eq. 4-6) and the roles that voxels play in the contrast (Eq. 7 and 9)."""
        predicted = step.logits[name].argmax(1)
        labeled, unlabeled = predicted[: step.num_labeled], predicted[step.num_labeled :]
        entropy = voxel_entropy(step.logits[name][step.num_labeled :].float().softmax(1))
        reliable, unreliable, threshold = split_by_entropy(entropy, self.config.entropy_alpha, step.valid)
        step.record(
            **{f"unreliable_{name}": unreliable.sum() / step.valid.sum(), f"threshold_{name}": threshold},
        )
        correct = labeled == step.target
        anchors = torch.cat((labeled.where(correct, -1), unlabeled.where(reliable, -1)))
        return Voxels(anchors, labeled.where(~correct, -1), unreliable)

    def _high_quality_contrast(self, features: dict[str, Tensor], voxels: dict[str, Voxels]) -> Tensor:
        """HqCL (Eq. 7-10): draws anchors and negatives over A and B, stores the anchors, scores against the centers."""
        bank = self.memory["bank"]
        anchors, anchor_mask = self._draw(features, [voxels[name].anchors for name in features])
        negatives, negative_mask = self._draw(features, [voxels[name].mistaken for name in features])
        classes = torch.arange(bank.num_classes, device=self.device)[:, None].where(anchor_mask, -1)
        bank.push(anchors.flatten(0, 1), classes.flatten())
        return self.hqcl(anchors, anchor_mask, *bank.centers(), negatives, negative_mask)

    def _draw(self, features: dict[str, Tensor], classes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Up to M voxels of each class over both networks together: features [C, M, d] and mask [C, M]."""
        index, mask = draw_per_class(
            torch.cat([c.flatten() for c in classes]), self.memory["bank"].num_classes, self.config.num_anchors
        )
        per_network = classes[0].numel()
        a, b = (self._project(name, volume, index % per_network) for name, volume in features.items())
        return torch.where((index < per_network)[..., None], a, b), mask

    def _project(self, name: str, volume: Tensor, index: Tensor) -> Tensor:
        """Features r of single voxels: sampled first, projected after, in float32."""
        return self.companions[f"head_{name}"](gather_rows(volume, index).float())

    def _distance_aware_contrast(self, step: Step, features: dict[str, Tensor], voxels: dict[str, Voxels]) -> Tensor:
        """DVCL (Eq. 11-19): random queries of both networks, which enter the queue before the search."""
        probabilities, rows = [], []
        for name, volume in features.items():
            index = draw_voxels(voxels[name].unreliable, self.config.num_queries)
            logits = gather_rows(step.logits[name][step.num_labeled :], index)
            probabilities.append(logits.float().softmax(-1))
            with torch.no_grad():
                rows.append(self._project(name, volume[step.num_labeled :], index))
        p = torch.cat(probabilities)
        queries = self.memory["queue"].push(features=torch.cat(rows), probabilities=p)
        candidates = self.memory["queue"].rows()
        neighborhoods = self.dvcl.neighborhoods(candidates["features"], queries)
        step.record(
            relevant_neighbors=neighborhoods.relevant.float().mean(),
            outlier_queries=neighborhoods.outlier.float().mean(),
        )
        return self.dvcl.score(p, candidates["probabilities"], neighborhoods)

    def why_zero(self, term: str) -> str:
        if term in ("hqcl", "dvcl") and self.progress <= self.config.contrastive_start > 0:
            return f"ssl.contrastive_start = {self.config.contrastive_start} of the training is not reached yet"
        if term == "hqcl":
            return (
                "no class had anchors and wrongly predicted labeled voxels at once (Eq. 9: no mistakes, no negatives)"
            )
        if term == "dvcl":
            return "no unreliable voxel was left as a query: none was found, or all were outliers (Eq. 15)"
        return super().why_zero(term)
