"""DVCL: distance-aware voxel-wise contrastive learning, rows 3 to 5 of the paper's Table 2."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor, nn

from nnunet_dvcl import distributed
from nnunet_dvcl.diagnostics.neighborhood_curves import NeighborhoodCurves
from nnunet_dvcl.diagnostics.neighborhood_quality import SHARES
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.losses import DistanceAwareContrastiveLoss, Neighborhoods
from nnunet_dvcl.memory import FeatureQueue
from nnunet_dvcl.options import Count, CountFrom0, Share, Weight
from nnunet_dvcl.trainers.base import Panel, Reach, Step, Term
from nnunet_dvcl.trainers.nnUNetTrainerCPS_HqCL import HqCLConfig, Voxels, nnUNetTrainerCPS_HqCL
from nnunet_dvcl.voxels.draws import draw_voxels
from nnunet_dvcl.voxels.gathering import gather_rows

VALIDATED = tuple(f"val_{share}" for share in SHARES)


class DVCLConfig(HqCLConfig):
    """What DVCL adds."""

    distance_weight: Weight = 0.3  # β of Eq. 3, of DVCL beside HqCL. Paper
    num_queries: Count = 512  # queries of Eq. 19 a network in a step
    queue_capacity: Count = 8192  # candidates of Eq. 12; at least 2 · `num_queries`
    num_neighbors: Count = 5  # K of Eq. 12, nearest candidates of a query
    num_outsiders: Count = 5  # K' of Eq. 12, farthest candidates of a query
    outlier_neighbors: Count = 50  # U of Eq. 15; at least `num_neighbors`
    ordinary_affinity: Share = 0.5  # r of Eq. 14, affinity of a neighbor that is not mutual. Paper
    validation_voxels: CountFrom0 = 8192  # on which Figure 6 is measured each epoch; 0: not at all

    @model_validator(mode="after")
    def _check_together(self) -> DVCLConfig:
        # a smaller queue would drop queries before their search
        if self.queue_capacity < 2 * self.num_queries:
            raise UserError(
                f"ssl.queue_capacity is {self.queue_capacity}, expected at least 2 * ssl.num_queries = "
                f"{2 * self.num_queries}: the queries of both networks have to fit into the queue."
            )
        if self.outlier_neighbors < self.num_neighbors:
            raise UserError(
                f"ssl.outlier_neighbors is {self.outlier_neighbors}, expected at least ssl.num_neighbors = "
                f"{self.num_neighbors} (the paper: U is significantly larger than K)."
            )
        return self


class Queries(NamedTuple):
    """Q voxels drawn from the unreliable ones, those of A first, and the candidates that they are compared with.

    Q and N are the same in each step, so that a GPU need not wait for the host to know them. Where there are fewer
    unreliable voxels, or candidates so far, rows are left that take no part.
    """

    index: dict[str, Tensor]  # network -> [Q / 2] int64, into this rank's voxels, batch first
    is_local: Tensor  # [Q] bool, whether it is a voxel of this rank
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
    reaches = nnUNetTrainerCPS_HqCL.reaches | {"dvcl": Reach.of("A B", "unreliable")}
    panels = (
        Panel("share of capacity filled", "share", ("queue_fill",)),
        Panel("share of DVCL's neighbors and queries", "share", ("relevant_neighbors", "outlier_queries")),
        Panel("neighborhoods of unreliable validation voxels [share]", "share", VALIDATED),
    )
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
        weight = self.config.contrastive_weight * self.config.distance_weight
        return terms | {"dvcl": Term.scaled(value, weight, self.contrastive_rampup(step))}

    def draw_queries(self, step: Step, voxels: dict[str, Voxels]) -> Queries:
        """Random unreliable voxels of both networks, which enter the queue before anything is looked up in it."""
        draws = {name: draw_voxels(v.unreliable, self.config.num_queries) for name, v in voxels.items()}
        index = {name: drawn + step.unlabeled_offset for name, (drawn, _) in draws.items()}
        is_local = torch.cat([of_this_rank for _, of_this_rank in draws.values()])
        own_logits = torch.cat([gather_rows(step.logits[name], drawn) for name, drawn in index.items()]).float()
        logits, drawn = distributed.merge_rows(own_logits, is_local)
        probabilities = self.labels.probabilities(logits)
        features = self.project_rows(voxels, index, is_local)
        queue = self.memory["queue"]
        rows = queue.push(drawn, features=features, probabilities=probabilities)
        return Queries(index, is_local, logits, probabilities, features, rows, *queue.slots())

    def project_rows(self, voxels: dict[str, Voxels], index: dict[str, Tensor], is_local: Tensor) -> Tensor:
        """Features of drawn voxels of all ranks, network after network: [Q, d]."""
        own = torch.cat([self.project(name, voxels[name].features, drawn) for name, drawn in index.items()])
        return distributed.merge_rows(own, is_local)[0]

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
        return self._why_no_contrast() or self.why_no_query() if term == "dvcl" else super().why_zero(term)

    def why_no_query(self) -> str:
        """The reason why the term for unreliable voxels was 0 after the contrast had begun."""
        return "no unreliable voxel was left as a query: none was found, or all were outliers (Eq. 15)"


class nnUNetTrainerDVCL_noQDS(nnUNetTrainerDVCL):
    """DVCL without its query detection strategy: the paper's Table 2, row 4."""

    detect_outliers = False


class nnUNetTrainerDVCL_noNPS(nnUNetTrainerDVCL):
    """DVCL without its neighbor partitioning strategy; not in the paper's tables."""

    partition_neighbors = False


class nnUNetTrainerDVCL_noNPS_noQDS(nnUNetTrainerDVCL_noNPS):
    """DVCL without both strategies: the paper's Table 2, row 3."""

    detect_outliers = False
