"""The same seed on the same machine gives the same weights on a CPU, augmentation and sampling included."""

import random

import numpy as np
import pytest
import torch

from nnunet_dvcl.trainers import nnUNetTrainerDVCL, nnUNetTrainerSupervised


def train(start, trainer_class, seed: int) -> dict[str, torch.Tensor]:
    """The weights after four iterations, whatever the state of the random sources before."""
    for disturb in (random.seed, np.random.seed, torch.manual_seed):
        disturb(np.random.default_rng().integers(1000).item())
    trainer = start(trainer_class, configuration="2d_tiny", fold="all", seed=seed)
    weights = {}
    for _ in range(4):
        trainer.train_step(next(trainer.dataloader_train))
    for name, module in {"A": trainer.network, **getattr(trainer, "companions", {})}.items():
        weights |= {f"{name}.{key}": value.clone() for key, value in module.state_dict().items()}
    trainer.on_train_end()
    return weights


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerSupervised, nnUNetTrainerDVCL])
def test_the_same_seed_gives_the_same_weights(start, trainer_class):
    first, again, other = (train(start, trainer_class, seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
