"""BaCon: what the balanced classifier learns, which voxels are contrasted, and with which temperatures."""

import pytest
import torch
from noise import noise_step
from torch.nn import functional as F

from nnunet_dvcl.losses import balanced_contrast, class_temperatures, reliable_negatives
from nnunet_dvcl.networks import unwrap
from nnunet_dvcl.trainers import nnUNetTrainerBaCon

EVERYTHING = {"num_anchors": 1100, "bank_capacity": 3000, "contrastive_start": 0.0, "anchor_confidence": 0.2}
EVERYTHING |= {"num_negatives": 64}
MODES = ["labels", "ignore", "regions", "regions + ignore"]
both_hosts = pytest.mark.parametrize("host", ["native", "cps"])


def _flat(volume):
    return volume.detach().movedim(1, -1).flatten(0, -2)


def _said(trainer, step, name):
    """What the balanced classifier of the teacher says of each voxel, [N, C]."""
    classifier = trainer.companions[f"head_balanced_{trainer.teacher_of(name)}"]
    return classifier(_flat(step.taught_features[name])).softmax(1).detach()


def _voxels(step, name):
    """Of all voxels: truth, and whether it has an accepted pseudo-label; then each class's labeled and other places."""
    truth = torch.cat((step.target.flatten(), torch.full((step.valid.numel(),), -1)))
    pseudo = torch.full_like(truth, -1)
    pseudo[step.unlabeled_offset :] = step.pseudo_labels[name].where(step.unlabeled, -1).flatten()
    return truth, pseudo


@both_hosts
@pytest.mark.parametrize("label_mode", MODES)
def test_the_balanced_loss_is_that_of_the_loops(start, label_mode, host):
    without_contrast = EVERYTHING | {"contrastive_start": 1.0}
    trainer = start(nnUNetTrainerBaCon, "2d_tiny", host=host, confidence=0.4, **without_contrast)
    step = noise_step(trainer, ignored_rows=8 if "ignore" in label_mode else 0)
    term, expected = trainer.ssl_terms(step)["balanced"], 0.0
    for name in trainer.student_names:
        truth, pseudo = _voxels(step, name)
        said = _said(trainer, step, name)
        logits = trainer.companions[f"head_balanced_{name}"](_flat(step.features[name])).detach()
        labeled = truth >= 0
        expected += F.cross_entropy(logits[labeled], truth[labeled]).item()
        confident = (pseudo >= 0) & (said.amax(1) >= 0.4)
        assert 0 < confident.sum() < (pseudo >= 0).sum()
        total = F.cross_entropy(logits[confident], said.argmax(1)[confident], reduction="sum")
        expected += (total / (pseudo >= 0).sum()).item()
    assert term.value.item() == pytest.approx(expected, rel=1e-4)
    assert term.weight == pytest.approx(2.0)


def test_each_class_has_as_many_voxels(start):
    """However rare it is."""
    trainer = start(nnUNetTrainerBaCon, "2d_tiny", num_anchors=20, confidence=0.0)
    step = noise_step(trainer)
    step.target.clamp_(max=1)
    step.target[0, 0, :9] = 2
    index, is_local, _ = trainer._draw(step, "A")
    drawn = step.target.flatten()[index[:, :20]]
    assert [int((drawn[c] == c)[is_local[c, :20]].sum()) for c in range(3)] == [20, 20, 9]


@both_hosts
def test_the_contrast_is_that_of_the_parts(start, host):
    """Draws that take everything: the loss, which has loops of its own, of all voxels with a label of either kind."""
    trainer = start(nnUNetTrainerBaCon, "2d_tiny", host=host, **EVERYTHING)
    step = noise_step(trainer, 0.5)
    term, expected = trainer.ssl_terms(step)["contrast"], 0.0
    counts = torch.stack([(step.target == c).sum() for c in range(3)])
    assert trainer.memory["frequencies"].shares[:, 0].tolist() == pytest.approx((counts / counts.sum()).tolist())
    for name in trainer.student_names:
        truth, pseudo = _voxels(step, name)
        chosen = (truth >= 0) | (pseudo >= 0)
        said, truth = _said(trainer, step, name)[chosen], truth[chosen]
        features = trainer.companions[f"head_{name}"](_flat(step.features[name])[chosen]).detach()
        classes = truth.where(truth >= 0, said.argmax(1))
        anchors = said.gather(1, classes[:, None])[:, 0] >= 0.2
        centers = torch.stack([features[anchors & (classes == c)].mean(0) for c in range(3)])
        filled, negative = torch.tensor([bool((anchors & (classes == c)).any()) for c in range(3)]), None
        negative = reliable_negatives(said, truth)
        temperatures = class_temperatures(counts, 0.5)
        expected += balanced_contrast(features, classes, anchors, centers, filled, negative, temperatures).item()
    assert term.value.item() == pytest.approx(expected, rel=1e-4)
    assert term.weight == pytest.approx(2.0)


def test_an_absent_class_has_no_center_and_no_nan(start):
    trainer = start(nnUNetTrainerBaCon, "2d_tiny", contrastive_start=0.0, anchor_confidence=0.2, confidence=1.0)
    step = noise_step(trainer)
    step.target.clamp_(max=1)
    term = trainer.ssl_terms(step)["contrast"]
    assert term.value.isfinite()
    assert term.value > 0
    assert trainer.memory["features_A"].count.tolist()[2] == 0


def test_the_contrast_begins_in_the_middle(start):
    trainer = start(nnUNetTrainerBaCon, "2d_tiny", num_epochs=10, num_iterations_per_epoch=10, anchor_confidence=0.2)
    for iteration, begun in ((0, False), (49, False), (50, True)):
        trainer.iteration = iteration
        assert bool(trainer.train_step(next(trainer.dataloader_train))["contrast"]) == begun
    trainer.iteration = 3
    assert "ssl.contrastive_start = 0.5" in trainer.why_zero("contrast")


def test_network_a_deploys_with_its_own_classifier(start, tmp_path):
    trainer = start(nnUNetTrainerBaCon, "2d_tiny")
    trainer.train_step(next(trainer.dataloader_train))
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    checkpoint = torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    assert checkpoint["network_weights"].keys() == unwrap(trainer.network).state_dict().keys()
    assert list(trainer.networks()) == ["A"]
    assert set(checkpoint["ssl_state"]["companions"]) == {"head_A", "head_balanced_A"}
    memory = checkpoint["ssl_state"]["memory"]
    assert memory["frequencies.shares"].sum() == pytest.approx(1)
