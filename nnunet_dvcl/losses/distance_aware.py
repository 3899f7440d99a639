"""DVCL: distance-aware contrast of unreliable voxels (Eq. 14, 16-19)."""

import torch
from torch import Tensor, nn

from nnunet_dvcl.losses.neighborhoods import Neighborhoods, find_neighborhoods
from nnunet_dvcl.voxels.precision import at_least_float32, full_precision


class DistanceAwareContrastiveLoss(nn.Module):
    """Pulls each query's prediction to those of its neighbors and away from its outsiders: DVCL, Eq. 18-19.

    The bound of the log ratio (Eq. 17) of two likelihoods (Eq. 16). Features only choose the neighbors and get no
    gradient. The constant (K - K')(log|U_R| + 1) of Eq. 18 has none either and is left out.

    Args:
        num_neighbors: K of Eq. 12.
        num_outsiders: K' of Eq. 12; K = K' makes Eq. 18 exact.
        outlier_neighbors: U of Eq. 15.
        ordinary_affinity: r of Eq. 14, the affinity of a neighbor that is not relevant.
        partition_neighbors: the neighbor partitioning strategy (NPS); off: every affinity is 1.
        detect_outliers: the query detection strategy (QDS); off: every query counts.

    Raises:
        ValueError: a number of neighbors below 1, or an affinity outside [0, 1].
    """

    def __init__(
        self,
        num_neighbors: int = 5,
        num_outsiders: int = 5,
        outlier_neighbors: int = 50,
        ordinary_affinity: float = 0.5,
        partition_neighbors: bool = True,
        detect_outliers: bool = True,
    ):
        super().__init__()
        for name, number in (
            ("num_neighbors", num_neighbors),
            ("num_outsiders", num_outsiders),
            ("outlier_neighbors", outlier_neighbors),
        ):
            if number < 1:
                raise ValueError(f"{name} is {number}, expected at least 1")
        if not 0 <= ordinary_affinity <= 1:
            raise ValueError(f"ordinary_affinity is {ordinary_affinity}, expected a number in [0, 1]")
        self.num_neighbors = num_neighbors
        self.num_outsiders = num_outsiders
        self.outlier_neighbors = outlier_neighbors
        self.ordinary_affinity = ordinary_affinity
        self.partition_neighbors = partition_neighbors
        self.detect_outliers = detect_outliers

    def forward(
        self,
        query_probabilities: Tensor,
        queries: Tensor,
        candidate_features: Tensor,
        candidate_probabilities: Tensor,
        filled: Tensor | None = None,
    ) -> Tensor:
        """The mean of ψ̄ (Eq. 18) over the queries that are no outliers (Eq. 19).

        Args:
            query_probabilities: [Q, C]; the only input that gets a gradient.
            queries: [Q] int64, each query's own row among the candidates; -1: no query, does not count.
            candidate_features: [N, d].
            candidate_probabilities: [N, C].
            filled: [N] bool, False: the row is no candidate; None: all are.

        Returns:
            [] at least float32; 0 with a graph where no query is kept.
        """
        neighborhoods = self.neighborhoods(candidate_features, queries, filled)
        return self.score(query_probabilities, candidate_probabilities, neighborhoods)

    def neighborhoods(self, candidate_features: Tensor, queries: Tensor, filled: Tensor | None = None) -> Neighborhoods:
        """`find_neighborhoods` with this loss's K, K' and U; shapes as in `forward`."""
        return find_neighborhoods(
            candidate_features, queries, self.num_neighbors, self.num_outsiders, self.outlier_neighbors, filled
        )

    def score(
        self, query_probabilities: Tensor, candidate_probabilities: Tensor, neighborhoods: Neighborhoods
    ) -> Tensor:
        """Eq. 19 for neighborhoods that are known already; shapes as in `forward`."""
        p = at_least_float32(query_probabilities)
        candidates = candidate_probabilities.detach().to(p.dtype)
        attraction = _agreement(p, candidates, neighborhoods.neighbors)  # [Q, K]
        separation = _agreement(p, candidates, neighborhoods.outsiders)  # [Q, K']
        affinity = self._affinity(neighborhoods.relevant.to(p.dtype))
        psi = separation.sum(1) - (affinity * attraction).sum(1)  # Eq. 18
        kept = (torch.cat((neighborhoods.neighbors, neighborhoods.outsiders), 1) >= 0).any(1)
        if self.detect_outliers:
            kept = kept & ~neighborhoods.outlier
        return psi.masked_fill(~kept, 0.0).sum() / kept.sum().clamp(min=1)

    def _affinity(self, relevant: Tensor) -> Tensor:
        """A_mn of Eq. 14 from 1 (relevant) and 0: [Q, K]."""
        if not self.partition_neighbors:
            return torch.ones_like(relevant)
        return self.ordinary_affinity + (1.0 - self.ordinary_affinity) * relevant

    def extra_repr(self) -> str:
        return (
            f"num_neighbors={self.num_neighbors}, num_outsiders={self.num_outsiders}, "
            f"outlier_neighbors={self.outlier_neighbors}, ordinary_affinity={self.ordinary_affinity}, "
            f"partition_neighbors={self.partition_neighbors}, detect_outliers={self.detect_outliers}"
        )


def _agreement(p: Tensor, candidates: Tensor, index: Tensor) -> Tensor:
    """p_m · p_n for the candidates n of each query m: [Q, C], [N, C] and [Q, K] -> [Q, K]; 0 where n is -1."""
    with full_precision(p.device):
        return torch.einsum("qc,qkc->qk", p, candidates[index]).masked_fill(index < 0, 0.0)
