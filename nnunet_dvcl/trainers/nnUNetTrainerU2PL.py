"""Unreliable pseudo-labels: a row of the paper's Table 1."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_dvcl import distributed
from nnunet_dvcl.labels import UNKNOWN
from nnunet_dvcl.losses import HighQualityContrastiveLoss, negative_classes
from nnunet_dvcl.memory import ClassBank
from nnunet_dvcl.options import Count, Positive, Share, Weight, choice
from nnunet_dvcl.trainers.base import Host, HostConfig, Passes, Reach, Step, nnUNetTrainerSSL
from nnunet_dvcl.voxels.draws import draw_per_class, draw_voxels
from nnunet_dvcl.voxels.entropy_share import most_uncertain


class U2PLConfig(HostConfig):
    """What unreliable pseudo-labels add."""

    pseudo_label_loss: choice("ce", "nnunet") = "ce"  # as published
    contrastive_weight: Weight = 0.1  # λ_c, of the contrast. Paper
    unreliable_share: Share = 0.2  # α_0, the most uncertain unlabeled voxels at first; falls to 0 over the training
    num_anchors: Count = 256  # M, anchors of a class
    num_negatives: Count = 50  # N, negatives of an anchor
    temperature: Positive = 0.5  # τ of the contrast
    anchor_probability: Share = 0.3  # δ_p, the least probability of its class that an anchor has
    num_queries: Count = 512  # unreliable voxels, and as many labeled ones, that are asked in a step to be negatives
    bank_capacity: Count = 4096  # negatives kept of a class


class nnUNetTrainerU2PL(Host, nnUNetTrainerSSL):
    """Voxels whose pseudo-label is unreliable as negatives of what they are not: U2PL (Wang et al., CVPR 2022)."""

    config_class: ClassVar[type[U2PLConfig]] = U2PLConfig
    needs_float64 = True
    config: U2PLConfig
    passes = Passes(trained=1, forward=1)  # the teacher's features of labeled patches are needed too
    reaches = {"pseudo_labels": Reach.of("A", "unlabeled"), "contrast": Reach.of("A head_A", "present")}

    def build_memory(self) -> dict[str, nn.Module]:
        self.info_nce = HighQualityContrastiveLoss(self.config.num_negatives, self.config.temperature)
        size = self.labels.num_classes, self.config.bank_capacity, self.config.feature_dim
        return super().build_memory() | {f"negatives_{name}": ClassBank(*size) for name in self.student_names}

    def accepted(self, step: Step, logits: Tensor) -> Tensor:
        """All but the share α_t = α_0 (1 - t) of the unlabeled voxels with the highest entropy."""
        share = self.config.unreliable_share * (1 - step.progress)
        return ~most_uncertain(self.labels.entropy(logits), share, self.labels.max_entropy, step.unlabeled)

    def num_compared(self, step: Step, known: Tensor) -> Tensor:
        """The reliable voxels, so that the loss weighs as much however few they are."""
        return distributed.mean(known.sum())

    def contrast(self, step: Step, name: str) -> Tensor:
        """InfoNCE of anchors, against the center of their class in the teacher's features and what is not the class."""
        bank, classes = self.memory[f"negatives_{name}"], self.known_classes(step, step.pseudo_labels[name]).flatten()
        index, is_local = draw_per_class(classes, bank.num_classes, self.config.num_anchors)
        probability = self.taught_probabilities(step, name, index.flatten()).unflatten(0, index.shape)
        of_class = torch.arange(bank.num_classes, device=self.device)[:, None, None].expand(*index.shape, 1)
        is_local = is_local & (probability.gather(2, of_class)[..., 0] > self.config.anchor_probability)
        anchors, mask = distributed.merge_rows(self.project(name, step.features[name], index), is_local)
        positives, _ = distributed.merge_rows(self.project_taught(step, name, index), is_local)
        number = mask.sum(1)
        centers = positives.masked_fill(~mask[..., None], 0.0).sum(1) / number.clamp(min=1)[:, None]
        self._push_negatives(step, name, bank)
        negatives, drawn = self._draw_negatives(bank)
        return self.info_nce(anchors, mask, centers, number > 0, negatives, drawn, self.shared_generator())

    def _push_negatives(self, step: Step, name: str, bank: ClassBank) -> None:
        """Unreliable voxels, and labeled ones, into the bank of each class that they are not but could be taken for."""
        unreliable = step.unlabeled & (step.pseudo_labels[name] == UNKNOWN)
        for voxels, offset in ((unreliable, step.unlabeled_offset), (step.target != UNKNOWN, 0)):
            index, is_local = draw_voxels(voxels, self.config.num_queries)
            truth = None if voxels is unreliable else step.target.flatten()[index]
            not_this = negative_classes(self.taught_probabilities(step, name, index + offset), truth)
            rows = torch.cat((self.project_taught(step, name, index + offset), not_this.float()), 1)
            rows, drawn = distributed.merge_rows(rows, is_local)
            features, not_this = rows.tensor_split([self.config.feature_dim], 1)
            classes = torch.arange(bank.num_classes, device=self.device).where((not_this > 0.5) & drawn[:, None], -1)
            bank.push(features.repeat_interleave(bank.num_classes, 0), classes.flatten())

    def _draw_negatives(self, bank: ClassBank) -> tuple[Tensor, Tensor]:
        """As many of a bank's rows as a class has anchors: [C, M, d] and mask [C, M], the same on all ranks.

        The loss draws each anchor's own of them, which takes a random number for each pair: too many for a whole bank.
        """
        generator = self.shared_generator()  # asked for outside of the block: within it there is one rank
        features, filled = bank.rows()
        classes = torch.arange(bank.num_classes, device=self.device)[:, None].where(filled, UNKNOWN)
        with distributed.single_rank():
            index, drawn = draw_per_class(classes.flatten(), bank.num_classes, self.config.num_anchors, generator)
        return features.detach().flatten(0, 1)[index], drawn

    def why_zero(self, term: str) -> str:
        if term == "contrast" and self.progress > self.config.contrastive_start:
            return "no class had anchors and negatives at once"
        return super().why_zero(term)
