"""Contrastive complementary labels: a row of the paper's Table 1."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from nnunet_dvcl import distributed
from nnunet_dvcl.labels import UNKNOWN
from nnunet_dvcl.losses import complementary_contrast, least_likely_classes
from nnunet_dvcl.options import Count, Positive, Share
from nnunet_dvcl.trainers.base import FixMatch, FixMatchConfig, Passes, Reach, Step, nnUNetTrainerSSL
from nnunet_dvcl.voxels.draws import draw_per_class, draw_voxels


class CCLConfig(FixMatchConfig):
    """What contrastive complementary labels add."""

    teacher_decay: Share = 0.999  # share of the average that stays in a step; it teaches nothing and can be exported
    complementary_share: Share = 0.7  # k, the classes that are complementary to an unconfident voxel
    temperature: Positive = 0.07  # τ of the contrast
    num_anchors: Count = 64  # labeled or confident voxels of a class
    num_queries: Count = 512  # unconfident voxels


class nnUNetTrainerCCL(FixMatch, nnUNetTrainerSSL):
    """Contrast that knows of unconfident voxels what they are not: complementary labels (Deng et al., NN 2024)."""

    config_class: ClassVar[type[CCLConfig]] = CCLConfig
    needs_float64 = True
    has_teacher = True
    config: CCLConfig
    passes = Passes(trained=1, forward=1)
    reaches = {"pseudo_labels": Reach.of("A", "unlabeled"), "contrast": Reach.of("A head_A", "present")}

    def contrast(self, step: Step, name: str) -> Tensor:
        """Labeled or confident voxels of each class and unconfident ones, against each other and their teacher's."""
        number, per_class = self.labels.num_classes, self.config.num_anchors
        confident, is_confident = draw_per_class(
            self.known_classes(step, step.pseudo_labels[name]).flatten(), number, per_class
        )
        unconfident = step.unlabeled & (step.pseudo_labels[name] == UNKNOWN)
        others, is_other = draw_voxels(unconfident, self.config.num_queries)
        index = torch.cat((confident.flatten(), others + step.unlabeled_offset))
        classes = torch.arange(number, device=self.device).repeat_interleave(per_class)
        complementary = least_likely_classes(
            self.taught_probabilities(step, name, index), self.config.complementary_share
        )
        features = self.project(name, step.features[name], index), self.project_taught(step, name, index)
        own = torch.cat((*features, complementary.float()), 1)
        rows, drawn = distributed.merge_rows(own, torch.cat((is_confident.flatten(), is_other)))
        dim = self.config.feature_dim
        features, other_views, complementary = rows.split((dim, dim, number), 1)
        return complementary_contrast(
            features,
            other_views,
            torch.cat((classes, torch.full_like(others, UNKNOWN))),
            complementary > 0.5,
            drawn,
            self.config.temperature,
        )
