"""A teacher that is the running average of network A."""

import math

import torch

from nnunet_dvcl.networks import unwrap
from nnunet_dvcl.trainers.base import EMATeacher, EMATeacherConfig, Term, nnUNetTrainerSSL


class nnUNetTrainerTaught(EMATeacher, nnUNetTrainerSSL):
    """The smallest method with a teacher."""

    config_class = EMATeacherConfig

    def ssl_terms(self, step):
        student = self.labels.channel_probabilities(step.unlabeled_patches(step.logits["A"]))
        teacher = self.labels.channel_probabilities(self.teach(step.unlabeled_patches(step.image)))
        return {"consistency": Term.scaled(step.mean_over_unlabeled((student - teacher).square().sum(1)), 1.0)}


def parameters(network: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in unwrap(network).parameters()]


def test_the_average_is_that_of_the_loops(start):
    """theta' <- d theta' + (1 - d) theta with d = min(decay, 1 - 1/(t + 1)): the first step takes A over whole."""
    trainer = start(nnUNetTrainerTaught, "2d_tiny", teacher_decay=0.6)
    teacher, expected = trainer.memory["teacher"], parameters(trainer.memory["teacher"])
    for t in range(4):
        assert trainer.iteration == t
        trainer.train_step(next(trainer.dataloader_train))
        decay = min(0.6, 1 - 1 / (t + 1))
        expected = [decay * a + (1 - decay) * b for a, b in zip(expected, parameters(trainer.network), strict=True)]
        for found, average in zip(parameters(teacher), expected, strict=True):
            torch.testing.assert_close(found, average)
    assert any(not torch.equal(a, b) for a, b in zip(parameters(teacher), parameters(trainer.network), strict=True))


def test_it_gets_no_gradient_and_is_not_optimized(start):
    trainer = start(nnUNetTrainerTaught, "2d_tiny")
    trainer.train_step(next(trainer.dataloader_train))
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    for parameter in trainer.memory["teacher"].parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad
        assert id(parameter) not in held
    assert not trainer.teach(torch.randn(1, 1, 16, 16)).requires_grad


def test_a_skipped_step_leaves_it_alone(start, monkeypatch):
    trainer = start(nnUNetTrainerTaught, "2d_tiny")
    trainer.train_step(next(trainer.dataloader_train))
    before = parameters(trainer.memory["teacher"])
    loss = trainer.loss
    monkeypatch.setattr(trainer, "loss", lambda *args: loss(*args) * math.nan)
    trainer.train_step(next(trainer.dataloader_train))
    assert all(map(torch.equal, before, parameters(trainer.memory["teacher"])))


def test_buffers_are_copied_not_averaged(start):
    trainer = start(nnUNetTrainerTaught, "2d_tiny")
    trainer.network.register_buffer("counted", torch.tensor([3]))
    trainer.memory["teacher"].register_buffer("counted", torch.tensor([0]))
    trainer._average(trainer.memory["teacher"], trainer.network, 0.9)
    assert trainer.memory["teacher"].counted.tolist() == [3]


def test_it_sees_in_the_networks_mode_and_at_full_resolution(start):
    trainer = start(nnUNetTrainerTaught, "2d_tiny")
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    teacher = trainer.memory["teacher"]
    assert teacher.training
    image = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(trainer.teach(image), teacher(image))
        assert teacher(image).shape == (2, 3, 16, 16)
        assert not torch.equal(trainer.teach(image), unwrap(trainer.network)(image)[0]), "it is no student"
