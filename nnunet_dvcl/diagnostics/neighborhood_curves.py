"""Figure 6 of the paper, measured during training on validation voxels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnunet_dvcl import distributed
from nnunet_dvcl.diagnostics import neighborhood_quality
from nnunet_dvcl.diagnostics.validation_voxels import ValidationVoxels, draw_validation_patches
from nnunet_dvcl.networks import run_with_features
from nnunet_dvcl.voxels.draws import draw_voxels
from nnunet_dvcl.voxels.entropy_split import split_by_entropy

if TYPE_CHECKING:
    from nnunet_dvcl.labels import Labels
    from nnunet_dvcl.losses import DistanceAwareContrastiveLoss

_NUM_PATCHES = 16


class NeighborhoodCurves:
    """The part of a trainer that compares neighborhoods with the truth once an epoch, logged as ``ssl/val_<share>``.

    The unreliable ones (Eq. 5) among a fixed set of validation voxels are queries and candidates at once, those of A
    and B together, as in training. At most `num_queries` a network, so that the epochs compare. On several GPUs each
    measures the same, and none waits for another.
    """

    labels: Labels
    dvcl: DistanceAwareContrastiveLoss

    def get_tr_and_val_datasets(self):
        datasets = super().get_tr_and_val_datasets()
        if self.config.validation_voxels:
            manager = self.configuration_manager
            images, label_maps = draw_validation_patches(
                datasets[1], _NUM_PATCHES, manager.patch_size, self.label_manager
            )
            with distributed.single_rank():
                self.validation_voxels = ValidationVoxels(
                    images, self.labels.of_label_map(label_maps), self.config.validation_voxels, self.batch_size
                )
        return datasets

    def epoch_statistics(self) -> dict[str, float]:
        statistics = super().epoch_statistics()
        if not self.config.validation_voxels:
            return statistics
        with distributed.single_rank():
            of_students = [self._unreliable(name) for name in self.student_names]
        features, labels, correct = (torch.cat(rows) for rows in zip(*of_students, strict=True))
        itself = torch.arange(len(features), device=self.device)
        quality = neighborhood_quality(self.dvcl.neighborhoods(features, itself), labels, correct)
        return statistics | {f"val_{name}": share.item() for name, share in quality.items()}

    def _unreliable(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Features [N, d], true classes [N] and whether they are predicted, of a network's unreliable voxels."""

        def forward(image: Tensor) -> tuple[Tensor, Tensor]:
            with self.autocast():
                return run_with_features(self.students()[name], image)

        labels = self.validation_voxels.labels.to(self.device)
        logits, features = self.validation_voxels.look(forward, self.device)
        _, unreliable, _ = split_by_entropy(self.labels.entropy(logits), self.config.entropy_alpha)
        index, drawn = draw_voxels(unreliable, self.config.num_queries, torch.Generator(self.device).manual_seed(0))
        index = index[drawn]
        correct = self.labels.predicted(logits[index]) == labels[index]
        return self.companions[f"head_{name}"](features[index]), labels[index], correct
