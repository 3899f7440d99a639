"""CPS and DVCL as the paper trained them, as far as that is known."""

from __future__ import annotations

from typing import ClassVar

import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_dvcl.data import with_own_random_numbers
from nnunet_dvcl.options import Count, Positive
from nnunet_dvcl.trainers.base import Passes, Preset, TrainingConfig, nnUNetTrainerPlugin
from nnunet_dvcl.trainers.base.step import SUPERVISED_SCALE
from nnunet_dvcl.trainers.nnUNetTrainerCPS import nnUNetTrainerCPS
from nnunet_dvcl.trainers.nnUNetTrainerDVCL import nnUNetTrainerDVCL
from nnunet_dvcl.trainers.nnUNetTrainerDVCL_SameView import CPSSameViewConfig, DVCLSameViewConfig

# the network and the patches of the paper's protocol; docs/explanation/paper-protocol.md says what is known of it
PRESET = Preset(
    "paper",
    {
        "patch_size": [64, 128, 128],
        "batch_size": 2,
        "architecture.arch_kwargs.n_stages": 5,
        "architecture.arch_kwargs.features_per_stage": [16, 32, 64, 128, 256],
        "architecture.arch_kwargs.strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
        "architecture.arch_kwargs.kernel_sizes": [[3, 3, 3]] * 5,
        "architecture.arch_kwargs.n_conv_per_stage": [2] * 5,
        "architecture.arch_kwargs.n_conv_per_stage_decoder": [2] * 4,
    },
)


class PaperSchedule(TrainingConfig):
    """The schedule of the paper's protocol, as far as it is known: 20,000 iterations of SGD."""

    initial_lr: Positive = 0.05  # 0.1 on the paper's loss, of which the trainers' is twice
    num_epochs: Count = 80  # of 250 iterations: 20,000. Paper


class PaperCPSConfig(PaperSchedule, CPSSameViewConfig):
    """CPS in the paper's protocol."""


class PaperDVCLConfig(PaperSchedule, DVCLSameViewConfig):
    """DVCL in the paper's protocol."""


class PaperProtocol(nnUNetTrainerPlugin):
    """What both trainers have of the paper's protocol beside the values of their configs.

    The network and the patches are the plans': ``nnunet_dvcl configure --preset paper``. So the model deploys like any
    other. Each value, and whether the paper gives it: docs/explanation/paper-protocol.md.
    """

    preset = PRESET

    def initialize(self) -> None:
        self.enable_deep_supervision = False
        # the total loss is twice the paper's: with half the learning rate and twice the decay, the steps are the same
        self.weight_decay = 1e-4 * SUPERVISED_SCALE
        super().initialize()
        self._report_differences()

    def _report_differences(self) -> None:
        differences = PRESET.differences(self.configuration_manager.configuration)
        if differences:
            self.print_to_log_file(
                "\n  ".join(["WARNING: the configuration is not the one of the paper's protocol:", *differences])
                + f"\nTo make that: nnunet_dvcl configure -d {self.plans_manager.dataset_name} -c 3d_fullres "
                f"-p {self.plans_manager.plans_name} --name 3d_paper --preset {PRESET.name}"
            )

    def configure_optimizers(self, *stage):
        if self.config.optimizer != "sgd":
            return super().configure_optimizers(*stage)
        optimizer = torch.optim.SGD(
            self.network.parameters(), self.initial_lr, momentum=0.9, weight_decay=self.weight_decay
        )
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def build_vanilla_network(self, enable_deep_supervision: bool) -> nn.Module:
        """Network B starts from Xavier's weights; A, which nnU-Net itself builds, from Kaiming's."""
        return super().build_vanilla_network(enable_deep_supervision).apply(_xavier)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        rotation, dummy_2d, _, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        # nothing is interpolated, so a patch needs no margin
        return rotation, dummy_2d, self.configuration_manager.patch_size, mirror_axes

    @staticmethod
    def get_training_transforms(
        patch_size,
        rotation_for_DA,
        deep_supervision_scales,
        mirror_axes,
        do_dummy_2d_data_aug,
        use_mask_for_norm=None,
        is_cascaded=False,
        foreground_labels=None,
        regions=None,
        ignore_label=None,
    ) -> ComposeTransforms:
        """Rotation by multiples of 90 degrees in the plane, and flips; then what nnU-Net does to labels."""
        plane = {axis for axis, size in enumerate(patch_size) if size == patch_size[-1]}
        moves = [Rot90Transform(1, num_rot_per_combination=(0, 1, 2, 3), allowed_axes=plane)] if len(plane) > 1 else []
        moves += [MirrorTransform(allowed_axes=mirror_axes)] if mirror_axes else []
        of_labels = nnUNetTrainer.get_validation_transforms(
            deep_supervision_scales, is_cascaded, foreground_labels, regions, ignore_label
        )
        return with_own_random_numbers(ComposeTransforms([*moves, *of_labels.transforms]))


def _xavier(module: nn.Module) -> None:
    if isinstance(module, (nn.modules.conv._ConvNd, nn.modules.conv._ConvTransposeNd)):
        nn.init.xavier_normal_(module.weight)


class nnUNetTrainerCPS_Paper(nnUNetTrainerCPS, PaperProtocol):
    """CPS in the paper's own protocol, as far as it is known: row 1 of Table 2."""

    config_class: ClassVar[type[PaperCPSConfig]] = PaperCPSConfig
    config: PaperCPSConfig
    passes = Passes(trained=2)


class nnUNetTrainerDVCL_Paper(nnUNetTrainerDVCL, PaperProtocol):
    """DVCL in the paper's own protocol, as far as it is known: row 5 of Table 2."""

    config_class: ClassVar[type[PaperDVCLConfig]] = PaperDVCLConfig
    config: PaperDVCLConfig
    passes = Passes(trained=2)
