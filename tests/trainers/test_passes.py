"""How often a step runs its networks: as often as the trainer says, nothing twice."""

from collections import Counter

import pytest
import torch
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder

from nnunet_dvcl import trainers
from nnunet_dvcl.networks import unwrap

SEMI_SUPERVISED = [
    name
    for name in trainers.__all__
    if name != "nnUNetTrainerSSL" and issubclass(getattr(trainers, name), trainers.nnUNetTrainerSSL)
]


@pytest.mark.parametrize("name", SEMI_SUPERVISED)
def test_a_step_runs_what_the_trainer_says(start, name):
    """An encoder or a decoder is half a network; voxels count, however they are cut into batches."""
    trainer_class = getattr(trainers, name)
    trainer = start(trainer_class, "2d_tiny")
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)
    trainer.dataloader_unlabeled = iter([unlabeled])
    voxels = Counter()

    def count(half, inputs, output) -> None:
        image = inputs[0][0] if isinstance(half, UNetDecoder) else inputs[0]  # the highest skip of an encoder
        voxels["trained" if torch.is_grad_enabled() else "forward"] += image[:, 0].numel() / 2

    for module in (unwrap(trainer.network), *trainer.companions.values(), *trainer.memory.values()):
        for half in unwrap(module).modules():
            if isinstance(half, (PlainConvEncoder, UNetDecoder)):
                half.register_forward_hook(count)
    trainer.train_step(labeled)
    whole = sum(batch["data"][:, 0].numel() for batch in (labeled, unlabeled))
    assert {kind: number / whole for kind, number in voxels.items()} == {
        kind: passes for kind, passes in trainer_class.passes._asdict().items() if passes
    }
