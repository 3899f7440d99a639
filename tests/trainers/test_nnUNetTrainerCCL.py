"""CCL: which labels are learned from, which voxels are compared with which, and the value of the contrast."""

import pytest
import torch
from naive_complementary import naive_complementary
from noise import noise_step

from nnunet_dvcl.labels import UNKNOWN
from nnunet_dvcl.networks import unwrap
from nnunet_dvcl.trainers import nnUNetTrainerCCL

MODES = ["labels", "ignore", "regions", "regions + ignore"]


def _few_voxels(step):
    """Some 20 voxels of either stream take part, so that loops over pairs of them are short."""
    few = torch.zeros(16, 16, dtype=torch.bool)
    few[4::5, ::6] = True
    step.target.masked_fill_(~few, UNKNOWN)
    step.labeled_valid &= few
    step.valid &= few


@pytest.mark.parametrize("host", ["native", "cps"])
@pytest.mark.parametrize("label_mode", MODES)
def test_the_contrast_is_that_of_the_loops(start, label_mode, host):
    trainer = start(nnUNetTrainerCCL, "2d_tiny", host=host, num_anchors=100, num_queries=200)
    step = noise_step(trainer, ignored_rows=8 if "ignore" in label_mode else 0)
    _few_voxels(step)
    for name, labels in step.pseudo_labels.items():  # every third voxel is unconfident, whatever the network says
        predicted = trainer.labels.predicted(step.unlabeled_patches(step.taught_logits[name]))
        labels.copy_(predicted.where(torch.arange(labels.numel()).view_as(labels) % 9 < 6, UNKNOWN))
    term = trainer.ssl_terms(step)["contrast"]
    expected = 0.0
    for name in trainer.student_names:
        head = trainer.companions[f"head_{name}"]
        teachers = trainer.companions[f"head_{trainer.teacher_of(name)}"]
        with torch.no_grad():
            own, taught = (
                project(volume.movedim(1, -1).flatten(0, -2)).double()
                for project, volume in ((head, step.features[name]), (teachers, step.taught_features[name]))
            )
            p = trainer.labels.class_probabilities(step.taught_logits[name]).movedim(1, -1).flatten(0, -2)
        truth = torch.cat((step.target.flatten(), torch.full((step.valid.numel(),), UNKNOWN)))
        pseudo, unlabeled = truth.clone(), torch.zeros_like(truth, dtype=torch.bool)
        pseudo[step.unlabeled_offset :] = step.pseudo_labels[name].flatten()
        unlabeled[step.unlabeled_offset :] = step.unlabeled.flatten()
        classes = truth.where(truth >= 0, pseudo.where(unlabeled, UNKNOWN))
        taking_part = ((truth >= 0) | unlabeled).nonzero()[:, 0]
        least = [[rank < 2 for rank in q.argsort().argsort().tolist()] for q in p[taking_part]]  # 0.7 · 3
        chosen = classes[taking_part].tolist()
        assert {UNKNOWN} < set(chosen)
        every = [True] * len(chosen)
        expected += naive_complementary(own[taking_part], taught[taking_part], chosen, least, every, 0.07).item()
    assert term.value.item() == pytest.approx(expected, rel=1e-4)
    assert term.weight == pytest.approx(2 * 1.0)


@pytest.mark.parametrize("label_mode", ["labels", "regions + ignore"])
def test_only_confident_labels_are_learned(start, label_mode):
    trainer = start(nnUNetTrainerCCL, "2d_tiny", confidence=0.4)
    step = noise_step(trainer, ignored_rows=8 if "ignore" in label_mode else 0)
    weak = step.unlabeled_patches(step.taught_logits["A"])
    confident = trainer.labels.class_probabilities(weak).amax(1) >= 0.4
    assert 0 < confident.sum() < confident.numel()
    assert torch.equal(step.pseudo_labels["A"], trainer.labels.predicted(weak).where(confident, UNKNOWN))
    term = trainer.ssl_terms(step)["pseudo_labels"]
    (gradient,) = torch.autograd.grad(term.value, step.logits["A"])
    learned = step.unlabeled_patches(gradient).abs().sum(1) > 0
    assert torch.equal(learned, step.unlabeled & confident)
    assert term.weight == pytest.approx(2 * 1.0), "no ramp"


def test_the_loss_is_a_mean_over_all_unlabeled_voxels(start):
    """As in FixMatch: few confident labels weigh little."""
    trainer = start(nnUNetTrainerCCL, "2d_tiny", confidence=0.4)
    step = noise_step(trainer)
    losses = torch.nn.functional.cross_entropy(
        step.logits["A"][2:], step.pseudo_labels["A"], ignore_index=-1, reduction="none"
    )
    expected = losses[step.valid].sum() / step.valid.sum()
    assert trainer._cross_entropy(step, "A").item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_average_teaches_nothing_and_deploys(start, monkeypatch):
    trainer = start(nnUNetTrainerCCL, "2d_tiny", teacher_decay=0.999)
    assert list(trainer.networks()) == ["A", "teacher"]
    assert list(trainer.memory) == ["teacher"]
    assert trainer.config_class().teacher_decay == 0.999
    monkeypatch.setattr(trainer, "_run_teacher", None)
    trainer.train_step(next(trainer.dataloader_train))
    for averaged, current in zip(
        trainer.memory["teacher"].parameters(), unwrap(trainer.network).parameters(), strict=True
    ):
        assert torch.equal(averaged, current), "the first step's average is the network"


def test_without_a_confident_voxel_labels_alone_are_contrasted(start):
    trainer = start(nnUNetTrainerCCL, "2d_tiny", confidence=1.0)
    output = trainer.train_step(next(trainer.dataloader_train))
    assert output["accepted"] == output["pseudo_labels"] == 0
    assert output["contrast"] > 0
    assert "no pseudo-label was accepted" in trainer.why_zero("pseudo_labels")
