"""A step of both networks on noise."""

import torch

from nnunet_dvcl.networks import ready_to_gather
from nnunet_dvcl.trainers.base.step import Step


def noise_step(trainer, progress: float = 0.5, ignored_rows: int = 0) -> Step:
    """Two labeled and two unlabeled patches; the first four rows of the unlabeled ones are padding.

    The first `ignored_rows` of the labeled ones have the ignore label.
    """
    torch.manual_seed(0)
    space = trainer.configuration_manager.patch_size
    channels = next(trainer.dataloader_unlabeled)["data"].shape[1]
    valid = torch.ones(2, *space, dtype=torch.bool)
    valid[:, :4] = False
    target = torch.randint(0, 3, (2, *space))
    target[:, :, :ignored_rows] = -1
    step = Step(torch.randn(4, channels, *space), target, valid, progress, trainer.labels)
    step.ignored_as_unlabeled = ignored_rows > 0 and trainer.config.ignored_as_unlabeled
    step.views = trainer.views(step)
    for name in trainer.student_names:
        step.outputs[name] = ready_to_gather(trainer.forward(name, step.views[name]))
    trainer.after_forward(step)
    return step
