"""The unlabeled stream: nnU-Net's loader, augmentation and workers, with a mask of the valid voxels as target."""

import multiprocessing
import os
import signal
from contextlib import AbstractContextManager

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunet_dvcl.data.processes import environment_variable, exit_with_parent
from nnunet_dvcl.data.unlabeled_dataset import UnlabeledDataset
from nnunet_dvcl.errors import UserError

_WORKERS_VARIABLE = "nnUNet_n_proc_DA"
Augmenter = SingleThreadedAugmenter | NonDetMultiThreadedAugmenter


class UnlabeledLoader(nnUNetDataLoader):
    """Random patches of random unlabeled cases.

    Yields ``data`` [B, channels, *S] float32 (in a cascade with a channel more for each label), ``target`` [B, 1, *S]
    int16 (0 inside the image, -1 where a voxel is padding or outside) and ``keys``, the B identifiers.
    """

    def __init__(self, data: UnlabeledDataset, *args, **kwargs) -> None:
        """As nnU-Net's own, without oversampling of foreground."""
        super().__init__(data, *args, oversample_foreground_percent=0.0, **kwargs)
        self.has_ignore = False  # else nnU-Net looks for annotated voxels

    def set_thread_id(self, thread_id: int) -> None:
        """Each worker process calls it first."""
        super().set_thread_id(thread_id)
        if multiprocessing.parent_process() is not None:
            exit_with_parent()


class Workers(NonDetMultiThreadedAugmenter):
    """batchgenerators' worker processes, with an error that says which of them died, and of what."""

    def __next__(self) -> dict:
        workers = self._processes  # emptied before the error comes
        try:
            return super().__next__()
        except RuntimeError as error:
            ends = {worker.exitcode for worker in workers if worker.exitcode}
            ends = ends - {-signal.SIGTERM} or ends  # the others are told to stop, at last so
            raise UserError(
                "An augmentation worker of the unlabeled scans is no longer alive (exit status "
                f"{', '.join(map(str, ends)) or 0}). If it printed an error, that is the reason. Otherwise the system "
                f"ended it, most likely because the memory was full: use fewer workers ({_WORKERS_VARIABLE}). Go on "
                "with --c."
            ) from error


class OwnRandomNumbers(BasicTransform):
    """Gives each augmentation worker a seed of torch's random numbers, drawn from NumPy's, which batchgenerators seeds.

    Forked workers begin with torch's state of their parent: without this, all would draw the same numbers. The process
    that made the transforms keeps its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seeded_in = os.getpid()

    def apply(self, data_dict: dict, **params) -> dict:
        if self._seeded_in != os.getpid():
            self._seeded_in = os.getpid()
            torch.manual_seed(np.random.randint(2**63 - 1))
        return data_dict


def with_own_random_numbers(transforms: ComposeTransforms) -> ComposeTransforms:
    """The same transforms; each worker that runs them draws its own random numbers."""
    return ComposeTransforms([OwnRandomNumbers(), *transforms.transforms])


def divide_workers(total: int, labeled_batch_size: int, unlabeled_batch_size: int) -> tuple[int, int]:
    """(labeled, unlabeled) augmentation workers in proportion to the batches, at least one each; (0, 0) for none."""
    if total == 0:
        return 0, 0
    labeled = round(total * labeled_batch_size / (labeled_batch_size + unlabeled_batch_size))
    labeled = max(1, min(labeled, total - 1))
    return labeled, max(1, total - labeled)


def allowed_workers(num_workers: int) -> AbstractContextManager[None]:
    """nnU-Net's own ``get_dataloaders`` uses ``num_workers`` inside of this block."""
    return environment_variable(_WORKERS_VARIABLE, str(num_workers))


def start_augmenter(loader: nnUNetDataLoader, num_workers: int, pin_memory: bool) -> Augmenter:
    """Batches without end: made in this process for 0 workers, else by worker processes, set up as nnU-Net's own.

    Raises:
        UserError: here or at any later batch, a worker process died.
    """
    if num_workers == 0:
        return SingleThreadedAugmenter(loader, None)
    augmenter = Workers(
        data_loader=loader,
        transform=None,
        num_processes=num_workers,
        num_cached=max(6, num_workers // 2),
        pin_memory=pin_memory,
        wait_time=0.002,
    )
    # The first batch starts the workers.
    next(augmenter)
    return augmenter


def stop_augmenter(augmenter: Augmenter | None) -> None:
    """End the worker processes, if there are any."""
    if isinstance(augmenter, NonDetMultiThreadedAugmenter):
        augmenter._finish()
