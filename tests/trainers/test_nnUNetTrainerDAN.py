"""The adversary of segmentations: it learns to tell labeled images, and the network to fool it."""

import math

import pytest
import torch

from nnunet_dvcl.networks import unwrap
from nnunet_dvcl.trainers import nnUNetTrainerDAN
from nnunet_dvcl.trainers.base import Term


def weights(module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(unwrap(module).parameters()).detach().clone()


@pytest.mark.parametrize("label_mode", ["labels", "regions + ignore"])
def test_the_term_is_the_cross_entropy_of_unlabeled_maps_with_labeled(start, monkeypatch, label_mode):
    trainer = start(nnUNetTrainerDAN, "2d_tiny", consistency_weight=0.3)
    steps, terms, ssl_terms = [], [], trainer.ssl_terms
    monkeypatch.setattr(
        trainer, "ssl_terms", lambda step: steps.append(step) or terms.append(ssl_terms(step)) or terms[0]
    )
    shown = []
    monkeypatch.setattr(trainer, "after_step", lambda: shown.append(trainer._shown))
    trainer.train_step(next(trainer.dataloader_train))
    (step,), term = steps, terms[0]["adversarial"]
    logits = step.logits["A"].detach()
    maps = logits.sigmoid() if "regions" in label_mode else logits.softmax(1)
    given, image, number = shown[0]
    torch.testing.assert_close(given, maps)
    assert image is step.image
    assert number == 2
    with trainer.memory["adversary"].frozen():
        answers = trainer.memory["adversary"](maps[2:], step.image[2:]).tolist()
    expected = sum(math.log(1 + math.exp(-answer)) for answer in answers) / len(answers)
    assert term.value.item() == pytest.approx(expected, rel=1e-5)
    assert term.weight == pytest.approx(2 * 0.3 * step.rampup(1.0))


def test_the_network_learns_to_fool_and_the_adversary_to_see_through(start, monkeypatch):
    """The idea, on one batch: the term rises while the adversary learns alone, and falls while the network does."""
    ssl = {"adversary_lr": 0.01, "adversary_dropout": 0.0, "adversary_width": 16}
    trainer = start(nnUNetTrainerDAN, "2d_tiny", rampup_fraction=0.0, consistency_weight=1.0, **ssl)
    monkeypatch.setattr(
        trainer, "supervised_terms", lambda step: {"supervised_A": Term(0.0 * step.logits["A"].sum(), 1.0)}
    )
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)
    adversary = trainer.memory["adversary"]

    def train(steps: int) -> list[float]:
        values = []
        for _ in range(steps):
            trainer.dataloader_unlabeled = iter([unlabeled])
            values.append(trainer.train_step(labeled)["adversarial"])
        return values

    network, before = weights(trainer.network), weights(adversary)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "update_weights", lambda total: torch.tensor(True))
        values = train(40)
    assert values[-1] > values[0] + 0.5
    assert torch.equal(weights(trainer.network), network)
    assert not torch.equal(weights(adversary), before)

    before = weights(adversary)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "after_step", lambda: None)
        values = train(20)
    assert values[-1] < values[0] - 0.5
    assert not torch.equal(weights(trainer.network), network)
    assert torch.equal(weights(adversary), before), "only its own loss trains it"
