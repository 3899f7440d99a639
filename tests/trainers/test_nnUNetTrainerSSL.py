"""What every semi-supervised trainer shares: the contract that a new method gets by being listed."""

import json
import math
import multiprocessing
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import nnunet_dvcl.trainers as trainers
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.networks import unwrap
from nnunet_dvcl.trainers import nnUNetTrainerCPS, nnUNetTrainerDVCL, nnUNetTrainerSSL, nnUNetTrainerSupervised

METHODS = [
    trainer
    for trainer in (getattr(trainers, name) for name in trainers.__all__)
    if issubclass(trainer, nnUNetTrainerSSL) and trainer is not nnUNetTrainerSSL
]


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


def _state(trainer) -> dict[str, torch.Tensor]:
    """Everything that training changes, flat."""
    state = {f"A.{k}": v for k, v in unwrap(trainer.network).state_dict().items()}
    state |= {f"companions.{k}": v for k, v in trainer.companions.state_dict().items()}
    state |= {f"memory.{k}": v for k, v in trainer.memory.state_dict().items()}
    for i, slots in trainer.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in slots.items()}
    return {key: value.clone() for key, value in state.items()}


CONTRACT = [
    *((method, "3d_tiny", True, "labels") for method in METHODS),
    *(
        (method, *variant)
        for method in (nnUNetTrainerCPS, nnUNetTrainerDVCL)
        for variant in (
            ("3d_tiny", False, "labels"),
            ("2d_tiny", True, "labels"),
            ("2d_tiny", False, "labels"),
            ("2d_tiny", True, "ignore"),
            ("2d_tiny", False, "regions"),
            ("2d_tiny", True, "regions + ignore"),
            ("3d_tiny", True, "regions + ignore"),
        )
    ),
]


@pytest.mark.parametrize(("method", "configuration", "deep_supervision", "label_mode"), CONTRACT)
def test_contract(build_trainer, method, configuration, deep_supervision):
    trainer = build_trainer(method, configuration, optimizer="adamw", initial_lr=0.005, num_iterations_per_epoch=13)
    trainer.enable_deep_supervision = deep_supervision
    trainer.on_train_start()
    first, second = _run_epoch(trainer), _run_epoch(trainer)

    assert all(math.isfinite(output["total"]) for output in first + second)
    supervised = [name for name in first[0] if name.startswith("supervised_")]
    for name in supervised:
        assert sum(o[name] for o in second[-5:]) < sum(o[name] for o in first[:5])
    for module in (trainer.network, *trainer.companions.values()):
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        assert grads, "nothing reached this module"
        assert all(g.isfinite().all() for g in grads)
        assert any(g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize("label_mode", ["regions + ignore"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_with_regions_and_an_ignore_label(start, method, label_mode):
    trainer = start(method, "2d_tiny")
    outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(3)]
    assert all(math.isfinite(output[term]) for output in outputs for term in (*trainer.loss_terms, "total"))
    assert all(outputs[-1][term] != 0 for term in trainer.loss_terms)
    for module in (trainer.network, *trainer.companions.values()):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    with torch.no_grad():
        assert all(0 <= share <= 1 or math.isnan(share) for share in trainer.epoch_statistics().values())


ALSO_IN_REGIONS = [(method, "labels") for method in METHODS] + [(nnUNetTrainerDVCL, "regions + ignore")]


@pytest.mark.parametrize(("method", "label_mode"), ALSO_IN_REGIONS)
def test_resume_restores_everything(build_trainer, method, tmp_path):
    before = build_trainer(method)
    before.on_train_start()
    _run_epoch(before)
    before.current_epoch -= 1  # as nnU-Net does before it saves
    before.save_checkpoint(str(tmp_path / "checkpoint.pth"))

    after = build_trainer(method, continue_training=True)
    after.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert (after.current_epoch, after.iteration, after.progress) == (1, before.iteration, before.progress)
    expected, restored = _state(before), _state(after)
    assert expected.keys() == restored.keys()
    assert all(torch.equal(expected[key], restored[key]) for key in expected)

    # and both go on alike from the same batches
    after.on_train_start()
    for trainer in (before, after):
        trainer.current_epoch = 1
        trainer.on_train_epoch_start()
    batch, unlabeled = next(after.dataloader_train), next(after.dataloader_unlabeled)
    losses = []
    for trainer in (before, after):
        trainer.dataloader_unlabeled = iter([unlabeled])
        torch.manual_seed(5)
        losses.append(trainer.train_step(batch))
    assert losses[0] == losses[1]
    assert all(torch.equal(value, _state(after)[key]) for key, value in _state(before).items())


@pytest.mark.parametrize(("method", "label_mode"), [(nnUNetTrainerSupervised, "labels"), *ALSO_IN_REGIONS])
def test_plain_nnunet_loads_network_a(start, tmp_path, method, tiny_dataset):
    trainer = start(method)
    trainer.train_step(next(trainer.dataloader_train))
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    checkpoint = torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    plans_manager, configuration_manager = tiny_dataset.managers()
    num_heads = plans_manager.get_label_manager(tiny_dataset.dataset_json).num_segmentation_heads
    network = nnUNetTrainer.build_network_architecture(plans_manager, configuration_manager, 1, num_heads, False)
    network.load_state_dict(checkpoint["network_weights"])
    assert [p.name for p in tmp_path.glob("checkpoint*")] == ["checkpoint.pth"]


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


@pytest.mark.parametrize(("attribute", "name"), [("is_cascaded", "cascade")])
def test_what_is_not_supported_yet_says_so(build_trainer, attribute, name):
    trainer = build_trainer(nnUNetTrainerDVCL)
    setattr(trainer, attribute, True)
    with pytest.raises(NotImplementedError, match=name):
        trainer.initialize()


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
