"""What every method stands on: nnU-Net's side, the semi-supervised step, and parts to put a method together from."""

from nnunet_dvcl.trainers.base.adversary import Adversary, AdversaryConfig
from nnunet_dvcl.trainers.base.config import TrainingConfig
from nnunet_dvcl.trainers.base.ema_teacher import EMATeacher, EMATeacherConfig
from nnunet_dvcl.trainers.base.features import Features, FeaturesConfig
from nnunet_dvcl.trainers.base.fix_match import FixMatch, FixMatchConfig
from nnunet_dvcl.trainers.base.host import Host, HostConfig
from nnunet_dvcl.trainers.base.nnUNetTrainerPlugin import nnUNetTrainerPlugin
from nnunet_dvcl.trainers.base.nnUNetTrainerSSL import SSLConfig, nnUNetTrainerSSL
from nnunet_dvcl.trainers.base.panels import Panel
from nnunet_dvcl.trainers.base.passes import Passes
from nnunet_dvcl.trainers.base.preset import Preset
from nnunet_dvcl.trainers.base.pseudo_labels import PseudoLabels, PseudoLabelsConfig
from nnunet_dvcl.trainers.base.second_decoder import TwoDecoders
from nnunet_dvcl.trainers.base.signed_distances import SignedDistances, SignedDistancesConfig
from nnunet_dvcl.trainers.base.step import Output, Reach, Step, Term
from nnunet_dvcl.trainers.base.twins import Twins, TwinsConfig
from nnunet_dvcl.trainers.base.weighted_twins import WeightedTwins

__all__ = [
    "Adversary",
    "AdversaryConfig",
    "EMATeacher",
    "EMATeacherConfig",
    "Features",
    "FeaturesConfig",
    "FixMatch",
    "FixMatchConfig",
    "Host",
    "HostConfig",
    "Output",
    "Panel",
    "Passes",
    "Preset",
    "PseudoLabels",
    "PseudoLabelsConfig",
    "Reach",
    "SSLConfig",
    "SignedDistances",
    "SignedDistancesConfig",
    "Step",
    "Term",
    "TrainingConfig",
    "Twins",
    "TwinsConfig",
    "TwoDecoders",
    "WeightedTwins",
    "nnUNetTrainerPlugin",
    "nnUNetTrainerSSL",
]
