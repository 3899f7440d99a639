"""The same seed on the same machine gives the same weights on a CPU, augmentation and sampling included."""

import itertools
import random

import numpy as np
import pytest
import torch

from nnunet_dvcl.trainers import nnUNetTrainerDVCL, nnUNetTrainerSupervised
from nnunet_dvcl.trainers.base.seeds import derive_seed


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


def test_no_two_seeds_share_a_network(start):
    """Not even B of the one and A of the other, nor one that a second rank or a later epoch begins with."""
    seeds = [
        derive_seed(seed, *part) for seed in range(5) for part in ((0, 0, 0), (0, 0, 1), (0, 1), (1, 0), (1, 1), (2, 0))
    ]
    assert len(set(seeds)) == len(seeds)
    first = {}
    for seed in (0, 1, 2):
        trainer = start(nnUNetTrainerDVCL, configuration="2d_tiny", seed=seed)
        first |= {
            (seed, name): next(network.parameters()).detach().clone() for name, network in trainer.students().items()
        }
        trainer.on_train_end()
    for one, other in itertools.combinations(first.values(), 2):
        assert not torch.equal(one, other)


def test_a_run_begins_with_the_seed_that_it_is_given():
    assert derive_seed(7) == 7
    assert derive_seed(7, 1) == derive_seed(7, 1)
