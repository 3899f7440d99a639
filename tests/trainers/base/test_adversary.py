"""A discriminator with an optimizer of its own: what trains it, what it trains, and when it is idle."""

import math

import pytest
import torch

from nnunet_dvcl.trainers.base import Adversary, AdversaryConfig, Reach, Term, nnUNetTrainerSSL
from nnunet_dvcl.trainers.base.adversary import Discriminator


class nnUNetTrainerFooling(Adversary, nnUNetTrainerSSL):
    """The smallest method with an adversary."""

    config_class = AdversaryConfig
    reaches = {"adversarial": Reach.of("A", "unlabeled")}

    def ssl_terms(self, step):
        maps = self.labels.channel_probabilities(step.logits["A"])
        return {"adversarial": Term.scaled(self.fool(step, maps), 1.0)}


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def one_step(trainer) -> dict:
    return trainer.train_step(next(trainer.dataloader_train))


@pytest.mark.parametrize("label_mode", ["labels", "regions + ignore"])
@pytest.mark.parametrize("configuration", ["2d_tiny", "3d_tiny"])
def test_both_learn_in_a_step(start, configuration, label_mode):
    trainer = start(nnUNetTrainerFooling, configuration)
    adversary = trainer.memory["adversary"]
    before = weights(adversary), weights(trainer.network)
    output = one_step(trainer)
    assert output["adversarial"] == pytest.approx(math.log(2), abs=0.5)
    assert not torch.equal(weights(adversary), before[0])
    assert not torch.equal(weights(trainer.network), before[1])


def test_the_networks_term_reaches_the_network_alone(start, monkeypatch):
    trainer = start(nnUNetTrainerFooling, "2d_tiny")
    monkeypatch.setattr(trainer, "update_weights", lambda total: total.backward() or torch.tensor(False))
    monkeypatch.setattr(
        trainer, "supervised_terms", lambda step: {"supervised_A": Term(step.logits["A"].sum() * 0, 1.0)}
    )
    one_step(trainer)
    assert all(p.grad is None and p.requires_grad for p in trainer.memory["adversary"].parameters())
    assert any(p.grad is not None and p.grad.any() for p in trainer.network.parameters())


def test_it_tells_a_planted_difference_and_is_fooled_by_its_absence(start):
    trainer = start(nnUNetTrainerFooling, "2d_tiny", adversary_lr=0.01)
    maps = torch.cat((torch.ones(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)))
    image = torch.randn(4, 1, 16, 16)
    for _ in range(60):
        trainer._shown = maps, image, 2
        trainer.after_step()
    logits = trainer.memory["adversary"](maps, image)
    assert (logits[:2] > 2).all()
    assert (logits[2:] < -2).all()

    step = trainer._begin_step(next(trainer.dataloader_train), next(trainer.dataloader_unlabeled))
    step.views = {"A": image}
    assert trainer.fool(step, torch.ones(4, 3, 16, 16)) < 0.2 < 2 < trainer.fool(step, maps)


def test_a_skipped_step_leaves_it_alone(start, monkeypatch):
    trainer = start(nnUNetTrainerFooling, "2d_tiny")
    loss = trainer.loss
    monkeypatch.setattr(trainer, "loss", lambda *args: loss(*args) * math.nan)
    before = weights(trainer.memory["adversary"])
    assert one_step(trainer)["skipped_steps"]
    assert torch.equal(weights(trainer.memory["adversary"]), before)
    monkeypatch.setattr(trainer, "loss", loss)
    assert not one_step(trainer)["skipped_steps"]
    assert not torch.equal(weights(trainer.memory["adversary"]), before)


def test_its_gradient_never_reaches_padding(start):
    """What is there is no prediction of an image; the adversary sees it all the same, as in labeled patches."""
    trainer = start(nnUNetTrainerFooling, "2d_tiny")
    unlabeled = next(trainer.dataloader_unlabeled)
    unlabeled["target"][:, :, :4] = -1
    step = trainer._begin_step(next(trainer.dataloader_train), unlabeled)
    step.views = {"A": step.image}
    maps = torch.rand(4, 3, 16, 16, requires_grad=True)
    trainer.fool(step, maps).backward()
    reached = maps.grad.abs().sum(1) > 0
    assert not reached[:2].any()
    assert torch.equal(reached[2:], step.valid)
    other = maps.detach().clone()
    other[2:, :, :4] = 5.0
    assert trainer.fool(step, other) != trainer.fool(step, maps)


def test_it_drops_channels_while_it_learns_alone(start):
    trainer = start(nnUNetTrainerFooling, "2d_tiny", adversary_width=16)
    adversary, maps, image = trainer.memory["adversary"], torch.randn(1, 3, 16, 16), torch.randn(1, 1, 16, 16)
    assert adversary(maps, image) != adversary(maps, image)
    with adversary.frozen():
        assert adversary(maps, image) == adversary(maps, image)
    assert adversary.training
    assert all(p.requires_grad for p in adversary.parameters())


@pytest.mark.parametrize(
    ("strides", "space", "sizes"),
    [
        ([[2, 2], [2, 2], [2, 2], [2, 2]], (16, 48), [(8, 24), (4, 12), (2, 6), (1, 3)]),
        ([[1, 2, 2], [2, 2, 2]], (2, 8, 12), [(2, 4, 6), (1, 2, 3)]),
        ([[1, 3, 1]], (5, 9, 4), [(5, 3, 4)]),
    ],
)
def test_it_divides_a_patch_as_the_network_does(strides, space, sizes):
    adversary, found = Discriminator(3, strides, 4, 0.5, 0.01), []
    convolutions = [layer for layer in adversary.layers if hasattr(layer, "stride")]
    for layer in convolutions:
        layer.register_forward_hook(lambda _, __, output: found.append(tuple(output.shape[1:])))
    assert adversary(torch.randn(2, 2, *space), torch.randn(2, 1, *space)).shape == (2,)
    assert found == [(4 << level, *size) for level, size in enumerate(sizes)]


def test_its_learning_rate_falls_as_nnunets(start):
    trainer = start(nnUNetTrainerFooling, "2d_tiny", adversary_lr=0.01, num_epochs=10)
    optimizer = trainer.memory["adversary"].optimizer
    rates = []
    for epoch in (0, 5, 9):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01 * (1 - epoch / 10) ** 0.9 for epoch in (0, 5, 9)])


def test_it_goes_on_where_it_was(start, tmp_path):
    trainer = start(nnUNetTrainerFooling, "2d_tiny")
    one_step(trainer)
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed = start(nnUNetTrainerFooling, "2d_tiny")
    resumed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    first, second = (t.memory["adversary"] for t in (trainer, resumed))
    assert torch.equal(weights(first), weights(second))
    moments = [[state["exp_avg_sq"] for state in a.optimizer.state.values()] for a in (first, second)]
    assert moments[0]
    assert all(map(torch.equal, *moments))


def test_mixed_precision_has_a_scaler_of_its_own():
    """As on a GPU, but in bfloat16 on the CPU, whose gradient scaler works alike."""
    adversary, other = (
        Discriminator(2, [[2, 2]], 4, 0.5, 0.01, torch.amp.GradScaler("cpu", init_scale=1024.0)) for _ in range(2)
    )
    adversary.scaler.scale(adversary(torch.ones(2, 1, 8, 8), torch.ones(2, 1, 8, 8)).sum()).backward()
    adversary.scaler.step(adversary.optimizer)
    adversary.scaler.update(512.0)
    other.load_state_dict(adversary.state_dict())
    assert other.scaler.get_scale() == 512.0
    assert len(other.optimizer.state_dict()["state"]) == len(adversary.optimizer.state_dict()["state"]) > 0
