"""Balanced feature contrast: a row of the paper's Table 1."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_dvcl import distributed
from nnunet_dvcl.labels import UNKNOWN
from nnunet_dvcl.losses import balanced_contrast, class_temperatures, reliable_negatives
from nnunet_dvcl.losses.masked_mean import masked_mean
from nnunet_dvcl.memory import ClassBank, ClassShares
from nnunet_dvcl.networks import last_segmentation_layer, unwrap
from nnunet_dvcl.options import Count, Positive, Share, Weight
from nnunet_dvcl.trainers.base import FixMatch, FixMatchConfig, Passes, Reach, Step, Term, nnUNetTrainerSSL
from nnunet_dvcl.voxels.draws import draw_per_class
from nnunet_dvcl.voxels.gathering import gather_rows


class BaConConfig(FixMatchConfig):
    """What balanced feature contrast adds."""

    feature_dim: Count = 16  # d, the width of a voxel's feature
    contrastive_start: Share = 0.5  # share of training before the contrast begins
    balanced_weight: Weight = 1.0  # of the balanced classifier's loss
    num_anchors: Count = 128  # labeled, and as many confident unlabeled voxels, of a class
    anchor_confidence: Share = 0.98  # least probability of its class, by the balanced classifier, of an anchor
    num_negatives: Count = 64  # as how many the negatives of a voxel count
    temperature: Positive = 0.1  # τ of the contrast
    bank_capacity: Count = 1024  # features kept of a class, for its center


class nnUNetTrainerBaCon(FixMatch, nnUNetTrainerSSL):
    """A balanced classifier, and contrast of its voxels with a center of each class: BaCon (Feng et al., AAAI 2024)."""

    config_class: ClassVar[type[BaConConfig]] = BaConConfig
    needs_float64 = True
    config: BaConConfig
    passes = Passes(trained=1, forward=1)
    reaches = {
        "pseudo_labels": Reach.of("A", "unlabeled"),
        "balanced": Reach.of("A head_balanced_A", "present"),
        "contrast": Reach.of("A head_A", "present"),
    }

    def build_companions(self) -> dict[str, nn.Module]:
        companions, width = super().build_companions(), last_segmentation_layer(self.network).in_channels
        names = (f"head_balanced_{name}" for name in self.student_names)
        return companions | {name: nn.Linear(width, self.labels.num_classes) for name in names}

    def build_memory(self) -> dict[str, nn.Module]:
        size = self.labels.num_classes, self.config.bank_capacity, self.config.feature_dim
        banks = {f"features_{name}": ClassBank(*size) for name in self.student_names}
        return super().build_memory() | banks | {"frequencies": ClassShares(self.labels.num_classes, 1)}

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        own = torch.stack([(step.target == c).sum() for c in range(self.labels.num_classes)])
        seen = self.iteration / (self.iteration + 1)  # the shares of all steps so far
        self.memory["frequencies"].update(distributed.total(own)[:, None], seen)
        value = sum(self.balanced(step, name) for name in self.student_names)
        return super().ssl_terms(step) | {"balanced": Term.scaled(value, self.config.balanced_weight)}

    def balanced(self, step: Step, name: str) -> Tensor:
        """Cross entropy of the balanced classifier, with truth and with what it is confident of in weak views: []."""
        index, is_local, taught = self._draw(step, name)
        logits = self.companions[f"head_balanced_{name}"](gather_rows(step.features[name], index).float())
        rows, drawn = distributed.merge_rows(torch.cat((logits, taught), -1), is_local)
        logits, taught = rows.chunk(2, -1)  # [C, 2M, C] each
        truth, (confidence, said) = self._truth_of_draw(), taught.max(-1)
        target = truth.where(truth >= 0, said)
        learned = drawn & ((truth >= 0) | (confidence >= self.config.confidence))
        losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        halves = zip(*(x.chunk(2, 1) for x in (losses, learned, drawn)), strict=True)
        return sum(masked_mean(loss, mask, of_half.sum()) for loss, mask, of_half in halves)

    def contrast(self, step: Step, name: str) -> Tensor:
        """Voxels that the balanced classifier is sure of, against the centers of all classes and what is of another."""
        index, is_local, taught = self._draw(step, name)
        own = torch.cat((self.project(name, step.features[name], index), taught), -1)
        rows, drawn = (x.flatten(0, 1) for x in distributed.merge_rows(own, is_local))
        features, taught = rows.tensor_split([self.config.feature_dim], 1)  # [2MC, d] and [2MC, C]
        truth = self._truth_of_draw().flatten()
        classes = truth.where(truth >= 0, taught.argmax(1))
        anchors = drawn & (taught.gather(1, classes[:, None])[:, 0] >= self.config.anchor_confidence)
        bank, temperature = self.memory[f"features_{name}"], self.config.temperature
        bank.push(features, classes.where(anchors, UNKNOWN))
        negative_of = reliable_negatives(taught, truth) & drawn[:, None]
        temperatures = class_temperatures(self.memory["frequencies"].shares[:, 0], step.progress, temperature)
        number = self.config.num_negatives
        return balanced_contrast(
            features, classes, anchors, *bank.centers(), negative_of, temperatures, temperature, number
        )

    @torch.no_grad()
    def _draw(self, step: Step, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """M labeled voxels of each class and M pseudo-labeled ones: places and which are this rank's, [C, 2M] each.

        And what the balanced classifier of the teacher says of them, [C, 2M, C].
        """
        pseudo_labels = step.pseudo_labels[name].where(step.unlabeled, UNKNOWN)
        size = self.labels.num_classes, self.config.num_anchors
        (labeled, is_labeled), (unlabeled, is_unlabeled) = (
            draw_per_class(classes.flatten(), *size) for classes in (step.target, pseudo_labels)
        )
        index = torch.cat((labeled, unlabeled + step.unlabeled_offset), 1)
        classifier = unwrap(self.companions[f"head_balanced_{self.teacher_of(name)}"])
        taught = classifier(gather_rows(step.taught_features[name], index).float()).softmax(-1)
        return index, torch.cat((is_labeled, is_unlabeled), 1), taught

    def _truth_of_draw(self) -> Tensor:
        """The class of each labeled place of a draw, [C, 2M] int64; -1: an unlabeled one."""
        classes = torch.arange(self.labels.num_classes, device=self.device)[:, None].expand(-1, self.config.num_anchors)
        return torch.cat((classes, torch.full_like(classes, UNKNOWN)), 1)
