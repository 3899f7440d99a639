"""Complementary-label contrast, the approach that the paper argues against (Figures 1 and 6)."""

from __future__ import annotations

from torch import Tensor

from nnunet_dvcl.losses import complementary_center_contrast
from nnunet_dvcl.trainers.base import Reach, Step
from nnunet_dvcl.trainers.nnUNetTrainerCPS_HqCL import Voxels
from nnunet_dvcl.trainers.nnUNetTrainerDVCL import Queries, nnUNetTrainerDVCL


class nnUNetTrainerCL_VCL(nnUNetTrainerDVCL):
    """CPS, HqCL and complementary-label contrast of unreliable voxels (after U2PL, CVPR 2022): the paper's Figure 6.

    The queue holds the same rows as DVCL's and takes no part in the loss: what surrounds an unreliable voxel can be
    measured for both alike.
    """

    reaches = nnUNetTrainerDVCL.reaches | {"dvcl": Reach.of("A B head_A head_B", "unreliable")}

    def score(self, step: Step, voxels: dict[str, Voxels], queries: Queries) -> Tensor:
        queries = queries.compact()
        centers = self.memory["bank"].centers()
        probabilities = self.labels.class_probabilities(queries.logits)
        return complementary_center_contrast(
            queries.features, probabilities, *centers, temperature=self.config.temperature
        )

    def why_no_query(self) -> str:
        return "no unreliable voxel was found, or no class that one is unlikely of has a center yet"
