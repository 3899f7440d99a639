"""The part of a trainer that has a second network."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_dvcl.data import TWINS, make_views
from nnunet_dvcl.options import Flag
from nnunet_dvcl.trainers.base.checkpoint import Weights
from nnunet_dvcl.trainers.base.nnUNetTrainerSSL import SSLConfig
from nnunet_dvcl.trainers.base.seeds import derive_seed
from nnunet_dvcl.trainers.base.step import Step

_AGREE, _NOTHING_FOUND = 0.98, 0.01  # agreement from which, and mean Dice below which, both say background
_BOTH_SAY_BACKGROUND = (
    "Both networks say background nearly everywhere: they agree, and the pseudo Dice is 0. In the first epochs that is "
    "usual with small organs. If it lasts, each confirms the other in it. Train nnUNetTrainerSupervised in the same "
    "configuration and fold: if it finds the organs, let pseudo-labels count less or later (lower "
    "ssl.consistency_weight, raise ssl.consistency_start where the trainer has it); if not, too little is learned from "
    "the labels: train longer (ssl.num_epochs), and look at the labels and at ssl.initial_lr."
)


class TwinsConfig(SSLConfig):
    """What twin networks add."""

    independent_intensities: Flag = False  # each network sees intensities of its own. Paper: false


class SecondNetwork:
    """Network B, of the same plan and from its own seed; both are students.

    A method that has it in some configurations alone says so by its `student_names`.
    """

    student_names: ClassVar[tuple[str, ...]] = ("A", "B")

    def build_companions(self) -> dict[str, nn.Module]:
        if "B" not in self.student_names:
            return super().build_companions()
        seed = secrets.randbits(32) if self.config.seed is None else derive_seed(self.config.seed, network=1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return super().build_companions() | {"B": self.build_second()}

    def build_second(self) -> nn.Module:
        """Network B; with random numbers of its own."""
        return self.build_vanilla_network(self.enable_deep_supervision)

    @classmethod
    def saved_networks(cls, checkpoint: dict) -> dict[str, Weights]:
        companions = checkpoint["ssl_state"]["companions"]
        return super().saved_networks(checkpoint) | {name: companions[name] for name in ("B",) if name in companions}


class Twins(SecondNetwork):
    """Two networks that see the same augmented image; only their initialization differs.

    With `independent_intensities` they see the same geometry in intensities of their own. A method that records the
    share of voxels on which they agree, `agreement`, is told when both say background.
    """

    config: TwinsConfig

    def get_training_transforms(self, *args, **kwargs):
        transforms = super().get_training_transforms(*args, **kwargs)
        return make_views(transforms, TWINS) if self.config.independent_intensities else transforms

    def views(self, step: Step) -> dict[str, Tensor]:
        if not self.config.independent_intensities:
            return super().views(step)
        return dict(zip(self.student_names, step.image.chunk(2, dim=1), strict=True))

    def symptoms(self, values: Mapping[str, float], dice: float) -> tuple[str, ...]:
        alike = values.get("agreement", 0.0) >= _AGREE and dice < _NOTHING_FOUND
        return (*super().symptoms(values, dice), *[_BOTH_SAY_BACKGROUND] * alike)
