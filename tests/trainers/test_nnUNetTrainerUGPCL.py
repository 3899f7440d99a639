"""UGPCL: two decoders on one encoder, which voxels they are certain of, and what is contrasted with what."""

import math
import sys

import pytest
import torch
from noise import noise_step

from nnunet_dvcl.labels import UNKNOWN
from nnunet_dvcl.networks import unwrap
from nnunet_dvcl.trainers import nnUNetTrainerUGPCL

MODES = ["labels", "ignore", "regions", "regions + ignore"]
EVERYTHING = {"num_anchors": 4000, "contrastive_start": 0.0}


def _moved(parameters) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in parameters)


@pytest.mark.parametrize("configuration", ["2d_tiny", "3d_tiny"])
def test_both_decoders_move_the_one_encoder(start, configuration):
    """What is shared gets the gradient of each loss; a decoder that of its own alone."""
    trainer = start(nnUNetTrainerUGPCL, configuration)
    second = unwrap(trainer.companions["B"])
    assert not any(key.startswith("encoder") or ".encoder" in key for key in second.state_dict())
    network = unwrap(trainer.network)
    own = {id(p): p for p in network.decoder.parameters()}
    encoder = list(network.encoder.parameters())
    for p in encoder:
        own.pop(id(p), None)
    for name in "AB":
        step = noise_step(trainer)
        trainer.optimizer.zero_grad()
        step.logits[name].square().mean().backward()
        assert _moved(encoder)
        assert _moved(own.values()) == (name == "A")
        assert _moved(second.parameters()) == (name == "B")


def test_decoders_start_differently_and_see_one_image(start):
    step = noise_step(start(nnUNetTrainerUGPCL, "2d_tiny"))
    assert not torch.equal(step.logits["A"], step.logits["B"])
    assert step.views["A"] is step.views["B"] is step.image


@pytest.mark.parametrize("label_mode", MODES)
def test_the_consistency_is_that_of_the_loops(start, label_mode):
    trainer = start(nnUNetTrainerUGPCL, "2d_tiny")
    step = noise_step(trainer, ignored_rows=8 if "ignore" in label_mode else 0)
    term = trainer.ssl_terms(step)["consistency"]
    squash = torch.sigmoid if "regions" in label_mode else lambda x: x.softmax(1)
    a, b = (squash(step.unlabeled_patches(step.logits[name]).detach().double()) for name in "AB")
    squares = (a - b).square()
    per_voxel = squares.mean(1) if "regions" in label_mode else squares.sum(1) / 2
    assert term.value.item() == pytest.approx(per_voxel[step.unlabeled].mean().item(), rel=1e-4)
    assert term.weight == pytest.approx(2 * 0.1)


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("label_mode", MODES)
def test_only_certain_voxels_have_a_class(start, label_mode, progress):
    """Those whose entropy, of the mean of both predictions, is below (0.75 + 0.25 w) of the highest."""
    trainer = start(nnUNetTrainerUGPCL, "2d_tiny", certain_entropy=0.9)
    step = noise_step(trainer, progress, ignored_rows=8 if "ignore" in label_mode else 0)
    regions = "regions" in label_mode
    logits = {name: 1.5 * torch.randn_like(step.logits[name]) for name in "AB"}
    step.outputs = logits
    classes = trainer.certain_classes(step)
    share = 0.9 + 0.1 * math.exp(-5 * (1 - min(progress / 0.3, 1)) ** 2)
    squash = torch.sigmoid if regions else lambda x: x.softmax(1)
    mean = sum(squash(logits[name].double()) for name in "AB") / 2
    parts = [mean, 1 - mean] if regions else [mean]
    entropy = -sum((p * p.log()).mean(1) if regions else (p * p.log()).sum(1) for p in parts)
    certain = step.unlabeled_patches(entropy) < share * math.log(2 if regions else 3)
    expected = torch.cat((step.target, torch.full_like(step.target, UNKNOWN)))
    of_patches = step.unlabeled_patches(expected)
    predicted = trainer.labels.predicted((logits["A"] + logits["B"]) / 2)
    chosen = certain & step.unlabeled
    of_patches[chosen] = step.unlabeled_patches(predicted)[chosen]
    assert torch.equal(classes, expected)
    assert 0 < chosen.sum() <= step.unlabeled.sum()
    assert step.statistics["certain"].item() == pytest.approx((chosen.sum() / step.unlabeled.sum()).item())


@pytest.mark.parametrize("host", ["native", "cps"])
def test_the_contrast_is_that_of_the_loops(start, host):
    """Every voxel with a class is an anchor; the first memory holds one mean a class, of the same step."""
    trainer = start(nnUNetTrainerUGPCL, "2d_tiny", host=host, **EVERYTHING)
    step = noise_step(trainer)
    term = trainer.ssl_terms(step)["contrast"]
    classes, expected = trainer.certain_classes(step).flatten(), 0.0
    for name in "AB":
        with torch.no_grad():
            head = trainer.companions[f"head_{name}"]
            features = head(step.features[name].movedim(1, -1).flatten(0, -2)).double()
        present = [c for c in range(3) if (classes == c).any()]
        means = {c: features[classes == c].mean(0) for c in present}
        assert trainer.memory[f"means_{name}"].count.tolist() == [int(c in present) for c in range(3)]
        losses = []
        for row, c in zip(features, classes.tolist(), strict=True):
            if c >= 0:
                likeness = {k: float(torch.cosine_similarity(row, mean, 0) / 0.07) for k, mean in means.items()}
                losses.append(math.log(sum(math.exp(s - likeness[c]) for s in likeness.values())))
        expected += sum(losses) / len(losses)
    assert term.value.item() == pytest.approx(expected, rel=1e-3)
    assert term.weight == pytest.approx(2 * 0.1)


def test_half_of_the_anchors_are_mistakes(start, monkeypatch):
    module = sys.modules[nnUNetTrainerUGPCL.__module__]
    trainer = start(nnUNetTrainerUGPCL, "2d_tiny", num_anchors=10)
    step, drawn = noise_step(trainer), []
    draw = module.draw_per_class
    monkeypatch.setattr(module, "draw_per_class", lambda *args: drawn.append(args) or draw(*args))
    trainer.contrast(step, "A")
    (wrong, _, five), (right, _, _) = drawn
    classes, predicted = trainer.certain_classes(step).flatten(), step.predicted("A").flatten()
    assert five == 5
    assert torch.equal(wrong, classes.where(predicted != classes, UNKNOWN))
    assert torch.equal(right, classes.where(predicted == classes, UNKNOWN))


def test_the_second_decoder_weighs_less(start):
    trainer = start(nnUNetTrainerUGPCL, "2d_tiny")
    output = trainer.train_step(next(trainer.dataloader_train))
    rest = 2 * 0.1 * output["rampup"] * output["consistency"]
    assert output["total"] == pytest.approx(output["supervised_A"] + 0.4 * output["supervised_B"] + rest, rel=1e-5)
    assert output["contrast"] == 0, "it begins later"


def test_the_second_decoder_does_not_deploy(start, tmp_path):
    trainer = start(nnUNetTrainerUGPCL, "2d_tiny")
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    checkpoint = torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    assert list(trainer.networks()) == list(trainer.saved_networks(checkpoint)) == ["A"]
    assert set(checkpoint["ssl_state"]["companions"]) == {"B", "head_A", "head_B"}
