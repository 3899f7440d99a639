"""A full disk, a damaged checkpoint, a read-only folder: the error names the file, and what was saved stays."""

import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from nnunet_dvcl.data import preprocess_unlabeled
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.configure import configure
from nnunet_dvcl.trainers import nnUNetTrainerDVCL, nnUNetTrainerSupervised
from nnunet_dvcl.trainers.base.checkpoint import read_ssl_state
from nnunet_dvcl.trainers.base.config import TrainingConfig

CANNOT_WRITE = r"cannot be written \(.*Is the disk full, or the folder read-only\?.*unchanged"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("trainer_class", [nnUNetTrainerSupervised, nnUNetTrainerDVCL])
def test_full_disk_while_a_checkpoint_is_written(start, tmp_path, no_file_beyond, trainer_class, share):
    """At any point of the file: from its first byte to its last one."""
    trainer, file = start(trainer_class), tmp_path / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    before = file.read_bytes()
    trainer.current_epoch += 1
    with no_file_beyond(int(share * (len(before) - 1))), pytest.raises(UserError, match=rf"{file} {CANNOT_WRITE}"):
        trainer.save_checkpoint(str(file))
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.glob("*.pth*")] == [file.name]

    trainer.save_checkpoint(str(file))
    assert torch.load(file, weights_only=False)["current_epoch"] == 2


def test_full_tmpfs_while_a_checkpoint_is_written(start, tmp_path, small_disk, no_file_beyond):
    trainer, first = start(nnUNetTrainerDVCL), tmp_path / "first.pth"
    trainer.save_checkpoint(str(first))
    size = first.stat().st_size
    folder = small_disk(size + size // 2)
    limit = nullcontext() if folder else no_file_beyond(size // 2)
    file = (folder or tmp_path) / "checkpoint_latest.pth"
    shutil.copy(first, file)
    with limit, pytest.raises(UserError, match=rf"{file} {CANNOT_WRITE}"):
        trainer.save_checkpoint(str(file))
    assert file.read_bytes() == first.read_bytes()
    assert not list(file.parent.glob("*.partial"))


def test_full_disk_while_the_plans_are_written(tiny_dataset, no_file_beyond):
    plans = tiny_dataset.preprocessed / "nnUNetPlans.json"
    before = plans.read_bytes()
    with no_file_beyond(len(before) // 2), pytest.raises(UserError, match=rf"{plans} {CANNOT_WRITE}"):
        configure("901", "3d_tiny", "own", "nnUNetPlans", ["batch_size=3"])
    assert plans.read_bytes() == before
    assert not list(plans.parent.glob("*.partial"))


@pytest.mark.parametrize("num_processes", [1, 2])
def test_full_disk_while_scans_are_preprocessed(tiny_dataset, no_file_beyond, num_processes):
    folder = tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled"
    (scan,) = [file for file in tiny_dataset.images.iterdir() if file.name.startswith("scan_1")]
    scan.rename(tiny_dataset.root / scan.name)
    preprocess_unlabeled("901", "3d_tiny", num_processes=1)
    before = {file.name: file.read_bytes() for file in folder.glob("scan_*")}
    (tiny_dataset.root / scan.name).rename(scan)
    with no_file_beyond(5000), pytest.raises(UserError, match=rf"{folder}/scan_1 {CANNOT_WRITE}"):
        preprocess_unlabeled("901", "3d_tiny", num_processes=num_processes)
    assert {file.name: file.read_bytes() for file in folder.glob("scan_*")} == before
    preprocess_unlabeled("901", "3d_tiny", num_processes=1)
    assert len(list(folder.glob("*.pkl"))) == 3


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_truncated_checkpoint(start, build_trainer, tmp_path, share):
    trainer, file = start(nnUNetTrainerDVCL), tmp_path / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    resumed = build_trainer(nnUNetTrainerDVCL, continue_training=True)
    with pytest.raises(UserError, match=rf"{file} is damaged, or no checkpoint\. Move it away: --c then goes on from"):
        resumed.load_checkpoint(str(file))
    assert file.stat().st_size == int(share * len(whole))


def test_any_other_file_is_no_checkpoint(tmp_path):
    file = tmp_path / "checkpoint_best.pth"
    file.write_text("no checkpoint")
    with pytest.raises(UserError, match=r"checkpoint_best\.pth is damaged, or no checkpoint"):
        read_ssl_state(str(file), "nnUNetTrainerCPS", TrainingConfig(), torch.device("cpu"))


# ---------------------------------------------------------------- read-only


def test_read_only_results_folder_before_training(build_trainer, read_only, monkeypatch):
    """It is there from an earlier run."""
    folder = build_trainer(nnUNetTrainerDVCL).output_folder
    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.sleep", lambda seconds: None)
    with read_only(folder):
        trainer = build_trainer(nnUNetTrainerDVCL)  # nnU-Net only tells that it cannot log
        with pytest.raises(UserError, match=rf"{folder} {CANNOT_WRITE}"):
            trainer.initialize()
    assert not trainer.was_initialized


def test_read_only_results_folder_that_nnunet_has_to_make(build_trainer, read_only, tiny_dataset):
    with read_only(tiny_dataset.results), pytest.raises(PermissionError, match=str(tiny_dataset.results)):
        build_trainer(nnUNetTrainerDVCL)


def test_results_folder_that_becomes_read_only(start, read_only):
    trainer = start(nnUNetTrainerDVCL)
    file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    before = file.read_bytes()
    with read_only(trainer.output_folder), pytest.raises(UserError, match=rf"{file} {CANNOT_WRITE}"):
        trainer.save_checkpoint(str(file))
    assert file.read_bytes() == before


def test_read_only_preprocessed_folder(tiny_dataset, read_only):
    with read_only(tiny_dataset.preprocessed):
        with pytest.raises(
            UserError, match=rf"{tiny_dataset.preprocessed}/nnUNetPlans_3d_fullres_unl.* {CANNOT_WRITE}"
        ):
            preprocess_unlabeled("901", "3d_tiny", num_processes=1)
        with pytest.raises(UserError, match=rf"nnUNetPlans\.json {CANNOT_WRITE}"):
            configure("901", "3d_tiny", "own", "nnUNetPlans", ["batch_size=3"])
