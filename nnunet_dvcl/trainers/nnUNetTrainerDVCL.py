"""DVCL: distance-aware voxel-wise contrastive learning, rows 3 to 5 of the paper's Table 2."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_dvcl.config import DVCLConfig
from nnunet_dvcl.losses import DistanceAwareContrastiveLoss
from nnunet_dvcl.memory import FeatureQueue
from nnunet_dvcl.sampling import draw_voxels, gather_rows
from nnunet_dvcl.trainers.nnUNetTrainerCPS import SUPERVISED_SCALE
from nnunet_dvcl.trainers.nnUNetTrainerCPS_HqCL import Voxels, nnUNetTrainerCPS_HqCL
from nnunet_dvcl.trainers.nnUNetTrainerSSL import Step, Term


class nnUNetTrainerDVCL(nnUNetTrainerCPS_HqCL):
    """CPS, HqCL and distance-aware contrast of unreliable voxels: the whole method, DVCL, Eq. 3-19."""

    config_class: ClassVar[type[DVCLConfig]] = DVCLConfig
    config: DVCLConfig
    partition_neighbors: ClassVar[bool] = True
    detect_outliers: ClassVar[bool] = True

    def build_memory(self) -> dict[str, nn.Module]:
        config = self.config
        self.dvcl = DistanceAwareContrastiveLoss(
            config.num_neighbors,
            config.num_outsiders,
            config.outlier_neighbors,
            config.ordinary_affinity,
            self.partition_neighbors,
            self.detect_outliers,
        )
        widths = {"features": config.feature_dim, "probabilities": self.label_manager.num_segmentation_heads}
        return super().build_memory() | {"queue": FeatureQueue(config.queue_capacity, **widths)}

    def contrastive_terms(self, step: Step, voxels: dict[str, Voxels]) -> dict[str, Term]:
        terms = super().contrastive_terms(step, voxels)
        started = step.progress >= self.config.contrastive_start
        value = self._distance_aware_contrast(step, voxels) if started else torch.zeros((), device=self.device)
        queue = self.memory["queue"]
        step.record(queue_fill=queue.count / queue.capacity)
        weight = SUPERVISED_SCALE * self.config.contrastive_weight * self.config.distance_weight
        return terms | {"dvcl": Term(value, weight)}

    def _distance_aware_contrast(self, step: Step, voxels: dict[str, Voxels]) -> Tensor:
        """DVCL (Eq. 11-19): random queries of both networks, which enter the queue before the search."""
        probabilities, features = [], []
        for name, (volume, _, _, unreliable) in voxels.items():
            index = draw_voxels(unreliable, self.config.num_queries)
            logits = gather_rows(step.logits[name][step.num_labeled :], index)
            probabilities.append(logits.float().softmax(-1))
            with torch.no_grad():
                features.append(self.project(name, volume[step.num_labeled :], index))
        p = torch.cat(probabilities)  # [Q, C]
        queries = self.memory["queue"].push(features=torch.cat(features), probabilities=p)
        candidates = self.memory["queue"].rows()
        neighborhoods = self.dvcl.neighborhoods(candidates["features"], queries)
        step.record(
            relevant_neighbors=neighborhoods.relevant.float().mean(),
            outlier_queries=neighborhoods.outlier.float().mean(),
        )
        return self.dvcl.score(p, candidates["probabilities"], neighborhoods)

    def why_zero(self, term: str) -> str:
        reason = super().why_zero(term)
        if term == "dvcl" and "contrastive_start" not in reason:
            return "no unreliable voxel was left as a query: none was found, or all were outliers (Eq. 15)"
        return reason


class nnUNetTrainerDVCL_noQDS(nnUNetTrainerDVCL):
    """Row 4: without the query detection strategy."""

    detect_outliers = False


class nnUNetTrainerDVCL_noNPS(nnUNetTrainerDVCL):
    """Without the neighbor partitioning strategy."""

    partition_neighbors = False


class nnUNetTrainerDVCL_noNPS_noQDS(nnUNetTrainerDVCL_noNPS):
    """Row 3: without both strategies."""

    detect_outliers = False
