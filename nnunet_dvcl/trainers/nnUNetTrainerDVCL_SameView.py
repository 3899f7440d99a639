"""CPS, HqCL and DVCL to the paper's letter: a pseudo-label is learned on the very patch that it is made on."""

from __future__ import annotations

from typing import ClassVar

from nnunet_dvcl.options import Share, Weight, choice
from nnunet_dvcl.trainers.base import Passes, PseudoLabelsConfig
from nnunet_dvcl.trainers.nnUNetTrainerCPS import CPSConfig, nnUNetTrainerCPS
from nnunet_dvcl.trainers.nnUNetTrainerCPS_HqCL import HqCLConfig, nnUNetTrainerCPS_HqCL
from nnunet_dvcl.trainers.nnUNetTrainerDVCL import DVCLConfig, nnUNetTrainerDVCL


class SameViewConfig(PseudoLabelsConfig):
    """Eq. 2 and 3 as the paper has them."""

    views: choice("same", "weak_strong") = "same"  # as the paper
    cutmix_probability: Share = 0.0  # as the paper
    pseudo_label_loss: choice("ce", "nnunet") = "ce"  # Eq. 2. Paper
    consistency_weight: Weight = 0.1  # λ_u of Eq. 3. Paper
    consistency_start: Share = 0.0  # as the paper
    rampup_fraction: Share = 1.0  # share of training over which λ_u rises by w(t); 0: no ramp


class CPSSameViewConfig(SameViewConfig, CPSConfig):
    """CPS in one view."""


class HqCLSameViewConfig(SameViewConfig, HqCLConfig):
    """CPS and HqCL in one view."""


class DVCLSameViewConfig(SameViewConfig, DVCLConfig):
    """DVCL in one view."""


class nnUNetTrainerCPS_SameView(nnUNetTrainerCPS):
    """CPS with the paper's views and weights: row 1 of Table 2."""

    config_class: ClassVar[type[CPSSameViewConfig]] = CPSSameViewConfig
    passes = Passes(trained=2)


class nnUNetTrainerCPS_HqCL_SameView(nnUNetTrainerCPS_HqCL):
    """CPS and HqCL with the paper's views and weights: row 2 of Table 2."""

    config_class: ClassVar[type[HqCLSameViewConfig]] = HqCLSameViewConfig
    passes = Passes(trained=2)


class nnUNetTrainerDVCL_SameView(nnUNetTrainerDVCL):
    """DVCL with the paper's views and weights: row 5 of Table 2."""

    config_class: ClassVar[type[DVCLSameViewConfig]] = DVCLSameViewConfig
    passes = Passes(trained=2)
