"""The part of a trainer that has a second network."""

from __future__ import annotations

import secrets
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_dvcl.data import TWINS, make_views
from nnunet_dvcl.options import Flag
from nnunet_dvcl.trainers.base.checkpoint import Weights
from nnunet_dvcl.trainers.base.nnUNetTrainerSSL import SSLConfig
from nnunet_dvcl.trainers.base.seeds import derive_seed
from nnunet_dvcl.trainers.base.step import Step


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

    With `independent_intensities` they see the same geometry in intensities of their own.
    """

    config: TwinsConfig

    def get_training_transforms(self, *args, **kwargs):
        transforms = super().get_training_transforms(*args, **kwargs)
        return make_views(transforms, TWINS) if self.config.independent_intensities else transforms

    def views(self, step: Step) -> dict[str, Tensor]:
        if not self.config.independent_intensities:
            return super().views(step)
        return dict(zip(self.student_names, step.image.chunk(2, dim=1), strict=True))
