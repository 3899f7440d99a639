"""The trainers that nnU-Net finds by name: ``nnUNetv2_train ... -tr <name>``."""

from nnunet_dvcl.trainers.base.lengths import trainer_of_length
from nnunet_dvcl.trainers.base.nnUNetTrainerSSL import nnUNetTrainerSSL
from nnunet_dvcl.trainers.nnUNetTrainerBaCon import nnUNetTrainerBaCon
from nnunet_dvcl.trainers.nnUNetTrainerCCL import nnUNetTrainerCCL
from nnunet_dvcl.trainers.nnUNetTrainerCL_VCL import nnUNetTrainerCL_VCL
from nnunet_dvcl.trainers.nnUNetTrainerCLD import nnUNetTrainerCLD
from nnunet_dvcl.trainers.nnUNetTrainerCPS import nnUNetTrainerCPS
from nnunet_dvcl.trainers.nnUNetTrainerCPS_HqCL import nnUNetTrainerCPS_HqCL
from nnunet_dvcl.trainers.nnUNetTrainerDAN import nnUNetTrainerDAN
from nnunet_dvcl.trainers.nnUNetTrainerDHC import nnUNetTrainerDHC
from nnunet_dvcl.trainers.nnUNetTrainerDTC import nnUNetTrainerDTC
from nnunet_dvcl.trainers.nnUNetTrainerDVCL import (
    nnUNetTrainerDVCL,
    nnUNetTrainerDVCL_noNPS,
    nnUNetTrainerDVCL_noNPS_noQDS,
    nnUNetTrainerDVCL_noQDS,
)
from nnunet_dvcl.trainers.nnUNetTrainerDVCL_losses import (
    nnUNetTrainerDVCL_InfoNCE,
    nnUNetTrainerDVCL_LogLikelihood,
    nnUNetTrainerDVCL_LogLikelihood_NPS,
    nnUNetTrainerDVCL_LogLikelihood_SNCLRWeights,
    nnUNetTrainerDVCL_NNCLR,
    nnUNetTrainerDVCL_SimCLR,
    nnUNetTrainerDVCL_SNCLR,
)
from nnunet_dvcl.trainers.nnUNetTrainerDVCL_Paper import nnUNetTrainerCPS_Paper, nnUNetTrainerDVCL_Paper
from nnunet_dvcl.trainers.nnUNetTrainerDVCL_SameView import (
    nnUNetTrainerCPS_HqCL_SameView,
    nnUNetTrainerCPS_SameView,
    nnUNetTrainerDVCL_SameView,
)
from nnunet_dvcl.trainers.nnUNetTrainerMagicNet import nnUNetTrainerMagicNet
from nnunet_dvcl.trainers.nnUNetTrainerMT import nnUNetTrainerMT
from nnunet_dvcl.trainers.nnUNetTrainerMT_WeakStrong import nnUNetTrainerMT_WeakStrong
from nnunet_dvcl.trainers.nnUNetTrainerSASSNet import nnUNetTrainerSASSNet
from nnunet_dvcl.trainers.nnUNetTrainerSupervised import nnUNetTrainerSupervised
from nnunet_dvcl.trainers.nnUNetTrainerU2PL import nnUNetTrainerU2PL
from nnunet_dvcl.trainers.nnUNetTrainerUAMT import nnUNetTrainerUAMT
from nnunet_dvcl.trainers.nnUNetTrainerUGPCL import nnUNetTrainerUGPCL

__all__ = sorted(
    name for name, value in globals().items() if name.startswith("nnUNetTrainer") and isinstance(value, type)
)


def __getattr__(name: str) -> type:
    """``<one of the above>_<N>epochs``, made when it is first asked for and kept."""
    trainer = trainer_of_length(name, {known: globals()[known] for known in __all__}, __name__)
    if trainer is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, trainer)
