"""DVCL: distance-aware voxel-wise contrastive learning, rows 3 to 5 of the paper's Table 2."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from nnunet_dvcl import distributed
from nnunet_dvcl.config import DVCLConfig
from nnunet_dvcl.diagnostics.neighborhood_curves import NeighborhoodCurves
from nnunet_dvcl.losses import DistanceAwareContrastiveLoss, Neighborhoods
from nnunet_dvcl.memory import FeatureQueue
from nnunet_dvcl.trainers.base.nnUNetTrainerSSL import Step, Term
from nnunet_dvcl.trainers.nnUNetTrainerCPS_HqCL import Voxels, nnUNetTrainerCPS_HqCL
from nnunet_dvcl.voxels.gathering import gather_rows
from nnunet_dvcl.voxels.sampling import draw_voxels


class Queries(NamedTuple):
    """Q voxels drawn from the unreliable ones, those of A first, and the candidates that they are compared with.

    Q and N are the same in each step, so that a GPU need not wait for the host to know them. Where there are fewer
    unreliable voxels, or candidates so far, rows are left that take no part.
    """

    index: dict[str, Tensor]  # network -> [Q / 2] int64, into this rank's voxels, batch first
    here: Tensor  # [Q] bool, whether it is a voxel of this rank
    logits: Tensor  # [Q, C] float32, with gradient
    probabilities: Tensor  # [Q, width of the labels] float32, with gradient; a dot product of two is their agreement
    features: Tensor  # [Q, d] float32, with gradient
    rows: Tensor  # [Q] int64, each query's own row among the candidates; -1: takes no part
    candidates: dict[str, Tensor]  # "features" [N, d] and "probabilities" [N, width], without gradient
    filled: Tensor  # [N] bool, False: takes no part

    def compact(self) -> Queries:
        """Only the rows that take part; the host waits for their number."""
        drawn = self.rows >= 0
        number = int(self.filled.sum())
        return self._replace(
            logits=self.logits[drawn],
            probabilities=self.probabilities[drawn],
            features=self.features[drawn],
            rows=self.rows[drawn],
            candidates={part: rows[:number] for part, rows in self.candidates.items()},
            filled=self.filled[:number],
        )


class nnUNetTrainerDVCL(NeighborhoodCurves, nnUNetTrainerCPS_HqCL):
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
        widths = {"features": config.feature_dim, "probabilities": self.labels.width}
        return super().build_memory() | {"queue": FeatureQueue(config.queue_capacity, **widths)}

    def contrastive_terms(self, step: Step, voxels: dict[str, Voxels]) -> dict[str, Term]:
        terms = super().contrastive_terms(step, voxels)
        if self.contrast_has_started(step):
            value = self.score(step, voxels, self.draw_queries(step, voxels))
        else:
            value = torch.zeros((), device=self.device)
        queue = self.memory["queue"]
        step.record(queue_fill=queue.count / queue.capacity)
        return terms | {"dvcl": Term(value, self.contrastive_weight(step) * self.config.distance_weight)}

    def draw_queries(self, step: Step, voxels: dict[str, Voxels]) -> Queries:
        """Random unreliable voxels of both networks, which enter the queue before anything is looked up in it."""
        draws = {
            name: draw_voxels(v.unreliable, self.config.num_queries, places=distributed.places)
            for name, v in voxels.items()
        }
        index = {name: drawn + step.unlabeled_offset for name, (drawn, _) in draws.items()}
        here = torch.cat([of_this_rank for _, of_this_rank in draws.values()])
        own_logits = torch.cat([gather_rows(step.logits[name], drawn) for name, drawn in index.items()]).float()
        logits, drawn = distributed.join(own_logits, here)
        probabilities = self.labels.probabilities(logits)
        features = self.project_rows(voxels, index, here)
        queue = self.memory["queue"]
        rows = queue.push(drawn, features=features, probabilities=probabilities)
        return Queries(index, here, logits, probabilities, features, rows, *queue.slots())

    def project_rows(self, voxels: dict[str, Voxels], index: dict[str, Tensor], here: Tensor) -> Tensor:
        """Features of drawn voxels of all ranks, network after network: [Q, d]."""
        own = torch.cat([self.project(name, voxels[name].features, drawn) for name, drawn in index.items()])
        return distributed.join(own, here)[0]

    def find_neighborhoods(self, step: Step, queries: Queries) -> Neighborhoods:
        """Eq. 12, 13 and 15 for the queries, among the candidates."""
        neighborhoods = self.dvcl.neighborhoods(queries.candidates["features"], queries.rows, queries.filled)
        step.record(
            relevant_neighbors=neighborhoods.relevant.sum() / (neighborhoods.neighbors >= 0).sum(),
            outlier_queries=neighborhoods.outlier.sum() / (queries.rows >= 0).sum(),
        )
        return neighborhoods

    def score(self, step: Step, voxels: dict[str, Voxels], queries: Queries) -> Tensor:
        """The term for unreliable voxels, []: DVCL (Eq. 11-19). The method's loss variants override this alone."""
        neighborhoods = self.find_neighborhoods(step, queries)
        return self.dvcl.score(queries.probabilities, queries.candidates["probabilities"], neighborhoods)

    def why_zero(self, term: str) -> str:
        reason = super().why_zero(term)
        if term == "dvcl" and "contrastive_start" not in reason:
            return "no unreliable voxel was left as a query: none was found, or all were outliers (Eq. 15)"
        return reason


class nnUNetTrainerDVCL_noQDS(nnUNetTrainerDVCL):
    """DVCL without its query detection strategy: the paper's Table 2, row 4."""

    detect_outliers = False


class nnUNetTrainerDVCL_noNPS(nnUNetTrainerDVCL):
    """DVCL without its neighbor partitioning strategy; not in the paper's tables."""

    partition_neighbors = False


class nnUNetTrainerDVCL_noNPS_noQDS(nnUNetTrainerDVCL_noNPS):
    """DVCL without both strategies: the paper's Table 2, row 3."""

    detect_outliers = False
