import random

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.trainers import nnUNetTrainerSupervised


def _weights_after(trainer, steps: int) -> torch.Tensor:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    trainer.initialize()
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    for _ in range(steps):
        trainer.train_step(next(trainer.dataloader_train))
    return torch.cat([p.detach().flatten() for p in trainer.network.parameters()])


def test_with_the_default_values_it_is_nnunets_own_trainer(tiny_dataset, build_trainer):
    plans = {**tiny_dataset.plans, "continue_training": False}
    stock = nnUNetTrainer(plans, "3d_tiny", "all", tiny_dataset.dataset_json, torch.device("cpu"))
    ours = build_trainer(nnUNetTrainerSupervised, seed=None, num_epochs=1000, num_iterations_per_epoch=250)
    assert torch.equal(_weights_after(ours, 3), _weights_after(stock, 3))


def test_the_schedule_comes_from_the_plans(build_trainer):
    trainer = build_trainer(nnUNetTrainerSupervised, optimizer="adamw", initial_lr=0.003, num_epochs=7)
    trainer.initialize()
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert trainer.optimizer.param_groups[0]["lr"] == 0.003
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (7, 2, 1)
    trainer.lr_scheduler.step(6)
    assert trainer.optimizer.param_groups[0]["lr"] < 0.003


def test_the_seed_gives_the_same_weights_again(build_trainer):
    weights = []
    for seed in (3, 3, 4):
        trainer = build_trainer(nnUNetTrainerSupervised, seed=seed)
        trainer.initialize()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.network.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_unknown_key_stops_before_anything_is_built(build_trainer):
    with pytest.raises(UserError, match=r"ssl\.num_epoch .*Did you mean ssl\.num_epochs"):
        build_trainer(nnUNetTrainerSupervised, num_epoch=3).initialize()
