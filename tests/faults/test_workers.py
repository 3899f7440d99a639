"""What happens to the unlabeled stream: its workers are killed, or outlive the training, or find other files."""

import multiprocessing
import os
import select
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy

from nnunet_dvcl.data import (
    UnlabeledDataset,
    UnlabeledLoader,
    get_unlabeled_dataset,
    preprocess_unlabeled,
    start_augmenter,
)
from nnunet_dvcl.data.loader import Workers
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.trainers import nnUNetTrainerDVCL

# batchgenerators' own thread says what it saw, too
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def loader(tiny_dataset):
    """Of the three scans in patches of 16."""
    preprocess_unlabeled("901", "3d_tiny", num_processes=1)
    plans_manager, configuration_manager = tiny_dataset.managers()
    dataset = get_unlabeled_dataset(plans_manager, configuration_manager, tiny_dataset.dataset_json, "all", 1, str)
    label_manager = plans_manager.get_label_manager(tiny_dataset.dataset_json)
    return UnlabeledLoader(dataset, 2, [16] * 3, [16] * 3, label_manager)


@pytest.fixture
def folder(tiny_dataset) -> Path:
    return tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled"


def _draw_until_it_fails(augmenter, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        next(augmenter)
    pytest.fail("it went on")


@pytest.mark.parametrize("killed", [0, 1])
def test_killed_worker_ends_the_training_with_an_error(loader, killed):
    before = set(multiprocessing.active_children())
    augmenter = start_augmenter(loader, 2, pin_memory=False)
    os.kill(augmenter._processes[killed].pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"worker of the unlabeled scans .*\(exit status -9\).*nnUNet_n_proc_DA.*--c"):
        _draw_until_it_fails(augmenter)
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("exit_signals", [(signal.SIGKILL, signal.SIGTERM), (signal.SIGTERM, signal.SIGKILL)])
def test_a_worker_that_has_to_be_stopped_by_force_is_not_the_reason(monkeypatch, exit_signals):
    """A worker may be killed with the lock that another waits for."""
    augmenter = Workers(data_loader=None, transform=None, num_processes=2)
    augmenter._processes = [multiprocessing.get_context("fork").Process(target=signal.pause) for _ in exit_signals]
    for worker, exit_signal in zip(augmenter._processes, exit_signals, strict=True):
        worker.start()
        os.kill(worker.pid, exit_signal)
        worker.join()

    def fail(_) -> None:
        raise RuntimeError("One or more background workers are no longer alive.")

    monkeypatch.setattr(NonDetMultiThreadedAugmenter, "__next__", fail)
    with pytest.raises(UserError, match=r"\(exit status -9\)"):
        next(augmenter)


def test_workers_end_with_a_killed_training(loader):
    """They hold the pipe's other end: it closes with the last of them."""
    reading, writing = os.pipe()

    def train() -> None:
        os.close(reading)
        augmenter = start_augmenter(loader, 2, pin_memory=False)
        os.write(writing, b"started")
        time.sleep(60)
        del augmenter  # which would end them

    training = multiprocessing.get_context("fork").Process(target=train)
    training.start()
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        assert select.select([pipe], [], [], 30)[0]
        assert pipe.read(7) == b"started"
        training.kill()
        training.join()
        assert select.select([pipe], [], [], 10)[0], "a worker is still there"
        assert pipe.read() == b""


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle - 500 : middle + 500] = os.urandom(1000)
    file.write_bytes(content)


def _reshape(file: Path) -> None:
    stored = nnUNetDatasetBlosc2(str(file.parent)).load_case(file.stem)[0][:]
    file.unlink()
    nnUNetDatasetBlosc2.save_seg(stored[:, :-3], str(file.with_suffix("")))


@pytest.mark.parametrize("change", [Path.unlink, _truncate, _damage, _reshape])
def test_changed_files_are_named(loader, folder, change):
    next(loader)
    for scan in range(3):
        change(folder / f"scan_{scan}.b2nd")
    with pytest.raises(UserError, match=rf"case {folder}/scan_\d cannot be read \(.+\)\. Were they changed.*--c"):
        next(loader)


@pytest.mark.parametrize("suffix", ["_seg.b2nd", ".pkl"])
def test_any_missing_file_is_named(loader, folder, suffix):
    for scan in range(3):
        (folder / f"scan_{scan}{suffix}").unlink()
    with pytest.raises(UserError, match=rf"case {folder}/scan_\d cannot be read"):
        next(loader)


def test_changed_files_of_nnunets_other_format_are_named(tmp_path):
    nnUNetDatasetNumpy.save_case(np.zeros((1, 4, 4, 4)), np.zeros((1, 4, 4, 4)), {}, str(tmp_path / "scan"))
    dataset = UnlabeledDataset([nnUNetDatasetNumpy(str(tmp_path), ["scan"])])
    assert dataset.load_case("scan")[0].shape == (1, 4, 4, 4)
    _truncate(tmp_path / "scan.npz")
    with pytest.raises(UserError, match=rf"case {tmp_path}/scan cannot be read"):
        dataset.load_case("scan")


def test_a_worker_tells_what_it_could_not_read(loader, folder, capfd):
    augmenter = start_augmenter(loader, 1, pin_memory=False)
    for scan in range(3):
        (folder / f"scan_{scan}.b2nd").unlink()
    with pytest.raises(UserError, match="If it printed an error, that is the reason"):
        _draw_until_it_fails(augmenter)
    printed = capfd.readouterr()
    assert f"preprocessed case {folder}/scan_" in printed.out + printed.err


def test_training_stops_with_the_name_of_the_case(start, folder):
    trainer = start(nnUNetTrainerDVCL)
    trainer.train_step(next(trainer.dataloader_train))
    for file in folder.glob("*.b2nd"):
        _truncate(file)
    with pytest.raises(UserError, match=rf"case {folder}/scan_\d cannot be read"):
        trainer.train_step(next(trainer.dataloader_train))
