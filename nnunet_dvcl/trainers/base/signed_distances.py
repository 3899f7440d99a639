"""The part of a trainer that draws signed distances: a head of network A, and the truth on labeled patches."""

from __future__ import annotations

from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch import nn

from nnunet_dvcl import distributed
from nnunet_dvcl.data import AddSignedDistances
from nnunet_dvcl.losses import signed_distance_error
from nnunet_dvcl.networks import FeatureTap, last_segmentation_layer
from nnunet_dvcl.options import Weight
from nnunet_dvcl.trainers.base.nnUNetTrainerSSL import SSLConfig
from nnunet_dvcl.trainers.base.step import Step, Term


class SignedDistancesConfig(SSLConfig):
    """What a head of signed distances adds."""

    signed_distance_weight: Weight = 0.3  # of the squared error of the distances on labeled patches


class SignedDistances:
    """``step.kept["distances"]``: z of a head beside the segmentation, [B_l + B_u, F, *S] float32 in (-1, 1).

    A convolution of one voxel on what goes into the last segmentation layer, and tanh; a channel each label beside
    background, or each region (SASSNet, Li et al., MICCAI 2020; DTC, Luo et al., AAAI 2021). The truth of the labeled
    patches comes from the augmentation workers: ``step.kept["true_distances"]``, [B_l, F, *S], nan where not known.
    """

    config: SignedDistancesConfig

    def build_companions(self) -> dict[str, nn.Module]:
        companions = super().build_companions()
        self.distance_tap = FeatureTap(self.network, self._do_i_compile())
        layer = last_segmentation_layer(self.network)
        return companions | {"head_distances": type(layer)(layer.in_channels, self.labels.num_foreground, 1)}

    def get_training_transforms(self, *args, **kwargs) -> ComposeTransforms:
        transforms = super().get_training_transforms(*args, **kwargs).transforms
        return ComposeTransforms([*transforms, AddSignedDistances(self.labels, self.configuration_manager.spacing)])

    def unlabeled_transforms(self) -> ComposeTransforms:
        transforms = super().unlabeled_transforms().transforms
        return ComposeTransforms([t for t in transforms if not isinstance(t, AddSignedDistances)])

    def _begin_step(self, labeled: dict, unlabeled: dict) -> Step:
        *target, distances = labeled["target"]
        step = super()._begin_step({**labeled, "target": target}, unlabeled)
        step.kept["true_distances"] = distances.to(self.device, non_blocking=True)
        return step

    def after_forward(self, step: Step) -> None:
        super().after_forward(step)
        step.features["A"] = self.distance_tap.pop()
        step.kept["distances"] = self.companions["head_distances"](step.features["A"]).float().tanh()

    def signed_distance_term(self, step: Step) -> Term:
        """The squared error of the distances on labeled patches, the mean over voxels and labels of all ranks."""
        truth = step.kept["true_distances"]
        count = distributed.mean(truth.isfinite().sum())
        error = signed_distance_error(step.kept["distances"][: step.num_labeled], truth, count)
        return Term.scaled(error, self.config.signed_distance_weight)
