"""The paper's Table 3: DVCL with another loss for the unreliable voxels, everything else the same.

As in the table, none has DVCL's query detection. What is chosen where the paper is silent, and why:
docs/explanation/loss-variants.md.
"""

from __future__ import annotations

from torch import Tensor

from nnunet_dvcl.losses import info_nce, nn_clr, positiveness, sim_clr, sn_clr, soft_neighbor_likelihood
from nnunet_dvcl.trainers.base import Reach, Step
from nnunet_dvcl.trainers.nnUNetTrainerCPS_HqCL import Voxels
from nnunet_dvcl.trainers.nnUNetTrainerDVCL import (
    Queries,
    nnUNetTrainerDVCL_noNPS_noQDS,
    nnUNetTrainerDVCL_noQDS,
)


class nnUNetTrainerDVCL_LogLikelihood(nnUNetTrainerDVCL_noNPS_noQDS):
    """The likelihood of DVCL alone, Eq. 18 with every A = 1 (after Wu et al., CVPR 2018): Table 3, row 4."""


class nnUNetTrainerDVCL_LogLikelihood_NPS(nnUNetTrainerDVCL_noQDS):
    """The likelihood with neighbor partitioning, Eq. 14 and 18: Table 3, row 7."""


_OF_FEATURES = {"dvcl": Reach.of("A B head_A head_B", "unreliable")}
_OF_VIEWS = {"dvcl": Reach.of("A B head_A head_B", "unreliable in A or B")}


class _LossVariant(nnUNetTrainerDVCL_noNPS_noQDS):
    def other_views(self, voxels: dict[str, Voxels], queries: Queries) -> Tensor:
        """The queries that take part in the other network: both see the same image, so voxel is voxel."""
        other = {"A": "B", "B": "A"}
        index = {other[name]: index for name, index in queries.index.items()}
        return self.project_rows(voxels, index, queries.is_local)[queries.rows >= 0]


class nnUNetTrainerDVCL_InfoNCE(_LossVariant):
    """InfoNCE of features, neighbors against outsiders (van den Oord et al., 2018): Table 3, row 1."""

    reaches = _LossVariant.reaches | _OF_FEATURES

    def score(self, step: Step, voxels: dict[str, Voxels], queries: Queries) -> Tensor:
        queries = queries.compact()
        found = self.find_neighborhoods(step, queries)
        candidates = queries.candidates["features"]
        return info_nce(
            queries.features, candidates[found.neighbors], candidates[found.outsiders], self.config.temperature
        )


class nnUNetTrainerDVCL_SimCLR(_LossVariant):
    """SimCLR between the features of both networks (Chen et al., ICML 2020): Table 3, row 2."""

    reaches = _LossVariant.reaches | _OF_VIEWS

    def score(self, step: Step, voxels: dict[str, Voxels], queries: Queries) -> Tensor:
        views = self.other_views(voxels, queries)
        return sim_clr(queries.compact().features, views, self.config.temperature)


class nnUNetTrainerDVCL_NNCLR(_LossVariant):
    """NNCLR, the nearest neighbor as the positive (Dwibedi et al., ICCV 2021): Table 3, row 3."""

    reaches = _LossVariant.reaches | _OF_VIEWS

    def score(self, step: Step, voxels: dict[str, Voxels], queries: Queries) -> Tensor:
        views = self.other_views(voxels, queries)
        queries = queries.compact()
        neighbors = self.find_neighborhoods(step, queries).neighbors
        # a lonely query, the first of all, has no neighbor: it adds nothing
        nearest = queries.candidates["features"][neighbors[:, :1]].flatten(0, 1)
        return nn_clr(nearest, views[: len(nearest)], self.config.temperature)


class nnUNetTrainerDVCL_SNCLR(_LossVariant):
    """SNCLR, neighbors as soft positives (Ge et al., ICLR 2023): Table 3, row 5."""

    reaches = _LossVariant.reaches | _OF_FEATURES

    def score(self, step: Step, voxels: dict[str, Voxels], queries: Queries) -> Tensor:
        views = self.other_views(voxels, queries)
        queries = queries.compact()
        neighbors = queries.candidates["features"][self.find_neighborhoods(step, queries).neighbors]
        return sn_clr(queries.features, views, neighbors, self.config.temperature)


class nnUNetTrainerDVCL_LogLikelihood_SNCLRWeights(_LossVariant):
    """The likelihood of DVCL with the neighbor weights of SNCLR (Ge et al., ICLR 2023): Table 3, row 6."""

    def score(self, step: Step, voxels: dict[str, Voxels], queries: Queries) -> Tensor:
        queries = queries.compact()
        found = self.find_neighborhoods(step, queries)
        features, probabilities = queries.candidates["features"], queries.candidates["probabilities"]
        weights = positiveness(queries.features, features[found.neighbors])
        return soft_neighbor_likelihood(
            queries.probabilities, probabilities[found.neighbors], probabilities[found.outsiders], weights
        )
