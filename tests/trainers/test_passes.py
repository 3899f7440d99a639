"""How often a step runs its networks: as often as the trainer says, nothing twice."""

from collections import Counter

import pytest
import torch

from nnunet_dvcl import trainers
from nnunet_dvcl.networks import unwrap

SEMI_SUPERVISED = [
    name
    for name in trainers.__all__
    if name != "nnUNetTrainerSSL" and issubclass(getattr(trainers, name), trainers.nnUNetTrainerSSL)
]


@pytest.mark.parametrize("name", SEMI_SUPERVISED)
def test_a_step_runs_what_the_trainer_says(start, name):
    trainer_class = getattr(trainers, name)
    trainer = start(trainer_class, "2d_tiny")
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)
    trainer.dataloader_unlabeled = iter([unlabeled])
    patches = Counter()

    def count(encoder, images, output) -> None:
        patches["trained" if torch.is_grad_enabled() else "forward"] += len(images[0])

    networks = {id(unwrap(network)): unwrap(network) for network in trainer.networks().values()}
    for network in networks.values():
        network.encoder.register_forward_hook(count)
    trainer.train_step(labeled)
    whole = len(labeled["data"]) + len(unlabeled["data"])
    assert {kind: number / whole for kind, number in patches.items()} == {
        kind: passes for kind, passes in trainer_class.passes._asdict().items() if passes
    }
