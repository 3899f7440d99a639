"""The adversary of signed distances: what it sees, whom it moves, and what weighs how much."""

import math

import pytest
import torch
from noise import noise_step

from nnunet_dvcl.networks import last_segmentation_layer, unwrap
from nnunet_dvcl.trainers import nnUNetTrainerSASSNet
from nnunet_dvcl.trainers.base import Term


def weights(module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(unwrap(module).parameters()).detach().clone()


@pytest.mark.parametrize("label_mode", ["labels", "regions + ignore"])
@pytest.mark.parametrize("configuration", ["2d_tiny", "3d_tiny"])
def test_the_terms_and_what_the_adversary_sees(start, configuration, label_mode):
    trainer = start(nnUNetTrainerSASSNet, configuration, consistency_weight=0.3, signed_distance_weight=0.2)
    step = noise_step(trainer)
    step.kept["true_distances"] = torch.rand(2, 2, *step.image.shape[2:])
    terms = trainer.ssl_terms(step)
    distances = step.kept["distances"]
    shown, image, number = trainer._shown
    assert torch.equal(shown, distances.detach())
    assert image is step.image
    assert number == 2
    adversary = trainer.memory["adversary"]
    assert shown.shape[1] == 2, "a channel each label beside background, or each region"
    with adversary.frozen():
        answers = adversary(distances[2:], step.image[2:]).tolist()
    expected = sum(math.log(1 + math.exp(-answer)) for answer in answers) / len(answers)
    assert terms["adversarial"].value.item() == pytest.approx(expected, rel=1e-5)
    assert terms["adversarial"].weight == pytest.approx(2 * 0.3 * step.rampup(1.0))
    error = (distances[:2] - step.kept["true_distances"]).square().mean().item()
    assert terms["signed_distance"].value.item() == pytest.approx(error, rel=1e-5)
    assert terms["signed_distance"].weight == pytest.approx(2 * 0.2)


def test_the_adversary_shapes_distances_and_through_them_the_features(start, monkeypatch):
    """The idea: an unlabeled image has no truth, yet its shapes have to look like those of labeled ones."""
    ssl = {"adversary_lr": 0.01, "adversary_dropout": 0.0, "adversary_width": 16, "signed_distance_weight": 0.0}
    trainer = start(nnUNetTrainerSASSNet, "2d_tiny", rampup_fraction=0.0, consistency_weight=1.0, **ssl)
    monkeypatch.setattr(
        trainer, "supervised_terms", lambda step: {"supervised_A": Term(0.0 * step.logits["A"].sum(), 1.0)}
    )
    trainer.optimizer.param_groups[0]["weight_decay"] = 0.0
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)
    head, layer = trainer.companions["head_distances"], last_segmentation_layer(trainer.network)

    def train(steps: int) -> list[float]:
        values = []
        for _ in range(steps):
            trainer.dataloader_unlabeled = iter([unlabeled])
            values.append(trainer.train_step(labeled)["adversarial"])
        return values

    network, of_head, of_layer = (weights(module) for module in (trainer.network, head, layer))
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "update_weights", lambda total: torch.tensor(True))
        values = train(40)
    assert values[-1] > values[0] + 0.5, "the adversary learns to tell them"
    assert torch.equal(weights(trainer.network), network)

    adversary = weights(trainer.memory["adversary"])
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "after_step", lambda: None)
        values = train(20)
    assert values[-1] < values[0] - 0.5, "the network learns to fool it"
    assert torch.equal(weights(trainer.memory["adversary"]), adversary)
    assert not torch.equal(weights(head), of_head)
    assert not torch.equal(weights(trainer.network), network)
    assert torch.equal(weights(layer), of_layer), "the segmentation is not what it looks at"


def test_head_and_adversary_are_in_the_checkpoint_and_not_in_what_deploys(start, tmp_path):
    trainer = start(nnUNetTrainerSASSNet, "2d_tiny")
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    checkpoint = torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    assert checkpoint["network_weights"].keys() == unwrap(trainer.network).state_dict().keys()
    assert list(checkpoint["ssl_state"]["companions"]) == ["head_distances"]
    assert {key.partition(".")[0] for key in checkpoint["ssl_state"]["memory"]} == {"adversary"}
