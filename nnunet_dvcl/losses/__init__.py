"""Losses: pure functions and small modules of rows (and, for CPS, of logits). They know no nnU-Net, device or epoch."""

from nnunet_dvcl.losses.cross_pseudo_supervision import cross_pseudo_supervision
from nnunet_dvcl.losses.distance_aware import DistanceAwareContrastiveLoss
from nnunet_dvcl.losses.entropy import voxel_entropy
from nnunet_dvcl.losses.high_quality import HighQualityContrastiveLoss
from nnunet_dvcl.losses.neighborhoods import Neighborhoods, find_neighborhoods
from nnunet_dvcl.losses.rampup import gaussian_rampup

__all__ = [
    "DistanceAwareContrastiveLoss",
    "HighQualityContrastiveLoss",
    "Neighborhoods",
    "cross_pseudo_supervision",
    "find_neighborhoods",
    "gaussian_rampup",
    "voxel_entropy",
]
