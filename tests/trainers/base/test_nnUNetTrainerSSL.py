"""What every semi-supervised trainer shares, beside the contract: epochs, checkpoints, logs, what is refused."""

import json
import math
import multiprocessing
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import nnunet_dvcl.trainers as trainers
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.trainers import nnUNetTrainerCPS, nnUNetTrainerDVCL, nnUNetTrainerSSL
from nnunet_dvcl.trainers.base.panels import panels_of


def _run_epoch(trainer) -> dict:
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    steps = range(trainer.num_iterations_per_epoch)
    outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in steps]
    trainer.on_train_epoch_end(outputs)
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val))])
    trainer.on_epoch_end()
    return outputs


def _one_of_each_picture() -> list[str]:
    """The first trainer with each set of panels; what a step does is the contract's."""
    names = [name for name in trainers.__all__ if name != "nnUNetTrainerSSL"]
    panels = {name: panels_of(getattr(trainers, name)) for name in names}
    return [name for place, name in enumerate(names) if panels[name] not in [panels[n] for n in names[:place]]]


@pytest.mark.parametrize("name", _one_of_each_picture())
def test_a_whole_epoch_leaves_logs_and_pictures(build_trainer, name):
    trainer = build_trainer(getattr(trainers, name), "2d_tiny")
    trainer.on_train_start()
    _run_epoch(trainer)
    assert {len(values) for values in trainer.logger.get_checkpoint().values()} == {1}
    pictures = {"progress.png"} | ({"progress_ssl.png"} if isinstance(trainer, nnUNetTrainerSSL) else set())
    assert {file.name for file in Path(trainer.output_folder).glob("*.png")} == pictures


@pytest.mark.parametrize(
    ("method", "configuration", "label_mode"),
    [
        (nnUNetTrainerDVCL, "3d_tiny", "labels"),
        (nnUNetTrainerDVCL, "2d_tiny", "regions + ignore"),
        (nnUNetTrainerCPS, "2d_tiny", "ignore"),
    ],
)
def test_the_loss_falls_over_whole_epochs_of_new_patches(build_trainer, method, configuration):
    trainer = build_trainer(method, configuration, optimizer="adamw", initial_lr=0.005, num_iterations_per_epoch=13)
    trainer.on_train_start()
    first, second = _run_epoch(trainer), _run_epoch(trainer)

    assert all(math.isfinite(output["total"]) for output in first + second)
    for name in ("supervised_A", "supervised_B"):
        assert sum(o[name] for o in second[-5:]) < sum(o[name] for o in first[:5])


def test_a_network_that_nnunet_could_not_load_fails_before_training(build_trainer):
    trainer = build_trainer(nnUNetTrainerCPS)
    trainer.initialize()
    trainer.network.decoder.extra = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r"decoder\.extra"):
        trainer.on_train_start()


def test_killed_while_saving_keeps_the_old_checkpoint(start, tmp_path, monkeypatch):
    trainer = start(nnUNetTrainerCPS)
    file = tmp_path / "checkpoint.pth"
    trainer.save_checkpoint(str(file))
    old = file.read_bytes()

    def dies(obj, target, *args):
        target.write(b"half")
        raise KeyboardInterrupt

    original = torch.save
    calls = iter([original, dies])
    monkeypatch.setattr(torch, "save", lambda *args: next(calls)(*args))
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(str(file))
    assert file.read_bytes() == old


def test_what_a_killed_run_left_half_written_is_removed(build_trainer):
    trainer = build_trainer(nnUNetTrainerCPS)
    leftover = Path(trainer.output_folder) / "checkpoint_latest.pth.partial"
    leftover.touch()
    trainer.on_train_start()
    assert not leftover.exists()


def test_checkpointing_can_be_disabled(start, tmp_path):
    trainer = start(nnUNetTrainerCPS)
    trainer.disable_checkpointing = True
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert not list(tmp_path.glob("checkpoint*"))


def test_a_checkpoint_of_other_values_is_answered_with_the_differences(start, build_trainer, tmp_path):
    start(nnUNetTrainerDVCL).save_checkpoint(str(tmp_path / "checkpoint.pth"))
    other = build_trainer(nnUNetTrainerDVCL, num_neighbors=7)
    with pytest.raises(UserError, match=r"ssl\.num_neighbors: 5 there, 7 here"):
        other.load_checkpoint(str(tmp_path / "checkpoint.pth"))


def test_a_checkpoint_of_another_trainer_is_named(start, build_trainer, tmp_path):
    file = str(tmp_path / "checkpoint.pth")
    start(nnUNetTrainerCPS).save_checkpoint(file)
    with pytest.raises(UserError, match="checkpoint of nnUNetTrainerCPS, this run is nnUNetTrainerDVCL"):
        build_trainer(nnUNetTrainerDVCL).load_checkpoint(file)
    stock = build_trainer(nnUNetTrainer)
    stock.initialize()
    stock.save_checkpoint(file)
    with pytest.raises(UserError, match=r"checkpoint of nnUNetTrainer, without.*-pretrained_weights"):
        build_trainer(nnUNetTrainerCPS).load_checkpoint(file)


def test_logs_are_filled_up_when_a_key_comes_later(build_trainer):
    trainer = build_trainer(nnUNetTrainerCPS)
    trainer.on_train_start()
    _run_epoch(trainer)
    logging = trainer.logger.local_logger.my_fantastic_logging
    del logging["ssl/cps"]
    _run_epoch(trainer)
    assert math.isnan(logging["ssl/cps"][0])
    assert math.isfinite(logging["ssl/cps"][1])
    assert {len(values) for values in logging.values()} == {2}
    for picture in ("progress.png", "progress_ssl.png"):
        assert (Path(trainer.output_folder) / picture).read_bytes().startswith(b"\x89PNG")


def test_nnunets_loss_curve_is_the_supervised_loss_of_a(start):
    trainer = start(nnUNetTrainerDVCL)
    output = trainer.train_step(next(trainer.dataloader_train))
    assert output["loss"] == output["supervised_A"]


def test_the_base_is_no_method(build_trainer):
    with pytest.raises(NotImplementedError, match="base of the methods"):
        build_trainer(nnUNetTrainerSSL).initialize()


def test_no_unlabeled_case_stops_before_training(build_trainer, tiny_dataset):
    for scan in tiny_dataset.images.iterdir():
        scan.unlink()
    with pytest.raises(UserError, match="imagesTr_unlabeled"):
        build_trainer(nnUNetTrainerCPS).on_train_start()


def test_workers_are_divided_and_shut_down(build_trainer, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = build_trainer(nnUNetTrainerCPS)
    trainer.on_train_start()
    assert trainer.dataloader_train.num_processes == 1
    assert trainer.dataloader_unlabeled.num_processes == 1
    trainer.train_step(next(trainer.dataloader_train))
    trainer.on_train_end()
    assert not multiprocessing.active_children()


def test_resolved_values_are_in_the_log(build_trainer):
    trainer = build_trainer(nnUNetTrainerDVCL, num_neighbors=3)
    trainer.initialize()
    line = next(line for line in Path(trainer.log_file).read_text().splitlines() if "nnUNetTrainerDVCL uses" in line)
    assert json.loads(line[line.index("{") :])["num_neighbors"] == 3


def test_the_folder_of_scans_may_be_left_out(tiny_dataset, start):
    split = {"train": ["case_0", "case_1"], "val": ["case_5"], "unlabeled": ["case_3"]}
    tiny_dataset.write_splits(split)
    for use, expected in ((True, {"case_3", *tiny_dataset.scans}), (False, {"case_3"})):
        trainer = start(nnUNetTrainerCPS, fold=0, unlabeled_folder=use)
        log = Path(trainer.log_file).read_text()
        assert f"{len(expected) - 1} of imagesTr_unlabeled, 1 of the split" in log
