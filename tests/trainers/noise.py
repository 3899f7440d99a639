"""A step of both networks on noise."""

import torch

from nnunet_dvcl.networks import full_resolution, ready_to_gather
from nnunet_dvcl.trainers.base.step import Step


def noise_step(trainer, progress: float = 0.5) -> Step:
    """Two labeled and two unlabeled patches; the first four rows of the unlabeled ones are padding."""
    torch.manual_seed(0)
    space = trainer.configuration_manager.patch_size
    image = torch.randn(4, 1, *space)
    outputs = {name: ready_to_gather(full_resolution(network(image))) for name, network in trainer.students().items()}
    valid = torch.ones(2, *space, dtype=torch.bool)
    valid[:, :4] = False
    target = torch.randint(0, 3, (2, *space))
    step = Step(image, target, valid, progress, trainer.labels, outputs=outputs)
    trainer.after_forward(step)
    return step
