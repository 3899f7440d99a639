"""The trainers that nnU-Net finds by name: ``nnUNetv2_train ... -tr <name>``."""

from nnunet_dvcl.trainers.nnUNetTrainerCPS import nnUNetTrainerCPS
from nnunet_dvcl.trainers.nnUNetTrainerCPS_HqCL import nnUNetTrainerCPS_HqCL
from nnunet_dvcl.trainers.nnUNetTrainerDVCL import (
    nnUNetTrainerDVCL,
    nnUNetTrainerDVCL_noNPS,
    nnUNetTrainerDVCL_noNPS_noQDS,
    nnUNetTrainerDVCL_noQDS,
)
from nnunet_dvcl.trainers.nnUNetTrainerSSL import nnUNetTrainerSSL
from nnunet_dvcl.trainers.nnUNetTrainerSupervised import nnUNetTrainerSupervised

__all__ = [
    "nnUNetTrainerCPS",
    "nnUNetTrainerCPS_HqCL",
    "nnUNetTrainerDVCL",
    "nnUNetTrainerDVCL_noNPS",
    "nnUNetTrainerDVCL_noNPS_noQDS",
    "nnUNetTrainerDVCL_noQDS",
    "nnUNetTrainerSSL",
    "nnUNetTrainerSupervised",
]
