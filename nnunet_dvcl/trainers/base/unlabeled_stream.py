"""The part of a trainer that brings unlabeled patches, and that predicts unlabeled scans for a cascade."""

from __future__ import annotations

import os

from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_dvcl import distributed
from nnunet_dvcl.cascade.next_stage import predict_unlabeled
from nnunet_dvcl.data import (
    UnlabeledLoader,
    allowed_workers,
    divide_workers,
    get_unlabeled_dataset,
    have_valid_voxels,
    start_augmenter,
    stop_augmenter,
    unlabeled_transforms,
)
from nnunet_dvcl.endings import message_alone
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.networks import unwrap


class UnlabeledStream:
    """Beside nnU-Net's two loaders a third: ``self.dataloader_unlabeled``."""

    unlabeled_batch_size: int  # of this rank, as nnU-Net's batch_size
    dataloader_unlabeled = None

    def _set_batch_size_and_oversample(self) -> None:
        ranks, labeled = distributed.world_size(), self.configuration_manager.batch_size
        unlabeled = self.config.unlabeled_batch_size or labeled
        if min(labeled, unlabeled) < ranks:
            raise UserError(
                f"A step has {labeled} labeled and {unlabeled} unlabeled patches, too few for {ranks} GPUs: each needs "
                "one of either. Use fewer GPUs, or raise batch_size and ssl.unlabeled_batch_size with "
                "nnunet_dvcl configure."
            )
        super()._set_batch_size_and_oversample()
        self.unlabeled_batch_size = distributed.local_batch_size(unlabeled)

    @property
    def _num_processes(self) -> int:
        return min(default_num_processes, os.cpu_count() or 1)

    def get_dataloaders(self):
        previous_stage = self.previous_stage()
        dataset = get_unlabeled_dataset(
            self.plans_manager,
            self.configuration_manager,
            self.dataset_json,
            self.fold,
            self._num_processes,
            self.print_to_log_file,
            self.config.unlabeled_folder,
            previous_stage and previous_stage.unlabeled,
            self.config.skip_bad_scans,
        )
        if previous_stage is not None:
            previous_stage.check_unlabeled(dataset)
        labeled_workers, unlabeled_workers = divide_workers(
            get_allowed_n_proc_DA(), self.batch_size, self.unlabeled_batch_size
        )
        with allowed_workers(labeled_workers):
            loaders = super().get_dataloaders()
        self.dataloader_unlabeled = start_augmenter(
            self._unlabeled_loader(dataset), unlabeled_workers, pin_memory=self.device.type == "cuda"
        )
        return loaders

    def _unlabeled_loader(self, dataset) -> UnlabeledLoader:
        *_, initial_patch_size, _ = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        patch_size = self.configuration_manager.patch_size
        transforms = self.unlabeled_transforms()
        return UnlabeledLoader(
            dataset,
            self.unlabeled_batch_size,
            initial_patch_size,
            patch_size,
            self.label_manager,
            transforms=transforms,
        )

    def unlabeled_transforms(self) -> ComposeTransforms:
        """From a patch with a margin to what the networks' views are made of."""
        rotation, dummy_2d, _, mirror_axes = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        transforms = self.get_training_transforms(
            self.configuration_manager.patch_size,
            rotation,
            None,
            mirror_axes,
            dummy_2d,
            use_mask_for_norm=self.configuration_manager.use_mask_for_norm,
            is_cascaded=self.is_cascaded,
            foreground_labels=self.label_manager.foreground_labels,
        )
        if not have_valid_voxels(transforms):
            raise UserError(
                f"get_training_transforms of {type(self).__name__} marks no valid voxels, which labeled patches need: "
                "let it change what super().get_training_transforms returns, or return "
                "nnunet_dvcl.data.with_valid_voxels(...) of its own."
            )
        return unlabeled_transforms(transforms)

    def on_train_end(self) -> None:
        super().on_train_end()
        stop_augmenter(self.dataloader_unlabeled)

    @message_alone()
    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        # first: nnU-Net ends with metrics that rank 0 computes alone, and no barrier waits that long
        problem = self._predict_next_stage() if self.configuration_manager.next_stage_names else None
        super().perform_actual_validation(save_probabilities)
        if problem is not None:
            raise problem

    def _predict_next_stage(self) -> UserError | None:
        """What nnU-Net does for the validation cases, for the unlabeled ones; returns what they cannot be for."""
        predictor = nnUNetPredictor(device=self.device, allow_tqdm=False)
        predictor.manual_initialization(
            unwrap(self.network),
            self.plans_manager,
            self.configuration_manager,
            None,
            self.dataset_json,
            type(self).__name__,
            self.inference_allowed_mirroring_axes,
        )
        self.set_deep_supervision_enabled(False)
        try:
            predict_unlabeled(
                predictor,
                type(self).__name__,
                self.configuration_name,
                self.fold,
                self._num_processes,
                self.print_to_log_file,
                self.config_class.from_plans,
            )
        except UserError as error:
            return error
        finally:
            self.set_deep_supervision_enabled(True)
