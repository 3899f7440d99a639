"""The part of a trainer that looks at features: taps on a layer of each student, and feature heads."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from nnunet_dvcl.networks import FeatureHead, FeatureTap, last_segmentation_layer
from nnunet_dvcl.options import Count
from nnunet_dvcl.trainers.base.nnUNetTrainerSSL import SSLConfig
from nnunet_dvcl.trainers.base.step import Step
from nnunet_dvcl.voxels.gathering import gather_rows


class FeaturesConfig(SSLConfig):
    """What feature heads add."""

    feature_dim: Count = 64  # d, the width of a voxel's feature r of Eq. 7


class Features:
    """``step.features``: the feature map of each student's forward; ``head_<student>``: rows of it to features.

    The map is what goes into the last segmentation layer, or, where `feature_layer` names one, what comes out of it.
    """

    feature_layer: ClassVar[str | None] = None  # for instance "encoder.stages.3"
    config: FeaturesConfig

    def build_companions(self) -> dict[str, nn.Module]:
        companions = super().build_companions()
        networks = {name: self.network if name == "A" else companions[name] for name in self.student_names}
        self.taps = {
            name: FeatureTap(network, self._do_i_compile(), self.feature_layer) for name, network in networks.items()
        }
        heads = {
            f"head_{name}": FeatureHead(self.num_features(network), self.config.feature_dim)
            for name, network in networks.items()
        }
        return companions | heads

    def num_features(self, network: nn.Module) -> int:
        """F, the channels of the feature map; to be overridden where `feature_layer` names another layer."""
        return last_segmentation_layer(network).in_channels

    def views(self, step: Step) -> dict[str, Tensor]:
        views = super().views(step)
        for tap in self.taps.values():
            tap.drop()  # where a student gave pseudo-labels before
        return views

    def after_forward(self, step: Step) -> None:
        super().after_forward(step)
        step.features.update((name, tap.pop()) for name, tap in self.taps.items())

    def project(self, name: str, volume: Tensor, index: Tensor) -> Tensor:
        """Features r of single voxels by the head of a student: sampled first, projected after, in float32.

        Args:
            name: of the student.
            volume: [B, F, *S], its feature map.
            index: int64 of any shape, into the B·prod(S) voxels, batch first.

        Returns:
            [*index.shape, d] float32, with gradient.
        """
        return self.companions[f"head_{name}"](gather_rows(volume, index).float())
