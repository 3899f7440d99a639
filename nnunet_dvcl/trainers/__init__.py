"""The trainers that nnU-Net finds by name: ``nnUNetv2_train ... -tr <name>``."""

from nnunet_dvcl.trainers.nnUNetTrainerCPS import nnUNetTrainerCPS
from nnunet_dvcl.trainers.nnUNetTrainerDVCL import nnUNetTrainerDVCL
from nnunet_dvcl.trainers.nnUNetTrainerSSL import nnUNetTrainerSSL
from nnunet_dvcl.trainers.nnUNetTrainerSupervised import nnUNetTrainerSupervised

__all__ = ["nnUNetTrainerCPS", "nnUNetTrainerDVCL", "nnUNetTrainerSSL", "nnUNetTrainerSupervised"]
