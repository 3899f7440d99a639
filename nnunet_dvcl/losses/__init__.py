"""Losses: pure functions and small modules of rows (for pseudo-labels: of logits). No nnU-Net, device or epoch."""

from nnunet_dvcl.losses.balanced_contrast import balanced_contrast, class_temperatures, reliable_negatives
from nnunet_dvcl.losses.class_weighted import (
    logarithmic_weights,
    power_weights,
    weighted_cross_entropy,
    weighted_dice_loss,
)
from nnunet_dvcl.losses.complementary_centers import complementary_center_contrast
from nnunet_dvcl.losses.complementary_contrast import complementary_contrast, least_likely_classes
from nnunet_dvcl.losses.consistency import consistency
from nnunet_dvcl.losses.cube_blending import blend_cubes
from nnunet_dvcl.losses.distance_aware import DistanceAwareContrastiveLoss
from nnunet_dvcl.losses.entropy import voxel_entropy
from nnunet_dvcl.losses.high_quality import HighQualityContrastiveLoss
from nnunet_dvcl.losses.info_nce import info_nce
from nnunet_dvcl.losses.negative_classes import negative_classes
from nnunet_dvcl.losses.neighborhoods import Neighborhoods, find_neighborhoods
from nnunet_dvcl.losses.nn_clr import nn_clr
from nnunet_dvcl.losses.pixel_contrast import pixel_contrast
from nnunet_dvcl.losses.pseudo_label_cross_entropy import pseudo_label_cross_entropy
from nnunet_dvcl.losses.rampup import gaussian_rampup
from nnunet_dvcl.losses.signed_distance import dual_task_consistency, signed_distance_error
from nnunet_dvcl.losses.sim_clr import sim_clr
from nnunet_dvcl.losses.sn_clr import positiveness, sn_clr
from nnunet_dvcl.losses.soft_neighbor_likelihood import soft_neighbor_likelihood

__all__ = [
    "DistanceAwareContrastiveLoss",
    "HighQualityContrastiveLoss",
    "Neighborhoods",
    "balanced_contrast",
    "blend_cubes",
    "class_temperatures",
    "complementary_center_contrast",
    "complementary_contrast",
    "consistency",
    "dual_task_consistency",
    "find_neighborhoods",
    "gaussian_rampup",
    "info_nce",
    "least_likely_classes",
    "logarithmic_weights",
    "negative_classes",
    "nn_clr",
    "pixel_contrast",
    "positiveness",
    "power_weights",
    "pseudo_label_cross_entropy",
    "reliable_negatives",
    "signed_distance_error",
    "sim_clr",
    "sn_clr",
    "soft_neighbor_likelihood",
    "voxel_entropy",
    "weighted_cross_entropy",
    "weighted_dice_loss",
]
