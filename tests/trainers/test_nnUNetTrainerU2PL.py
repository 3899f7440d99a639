"""U2PL: which labels are learned from, which voxels are anchors and negatives, and the value of the contrast."""

import math

import pytest
import torch
from noise import noise_step

from nnunet_dvcl.labels import UNKNOWN
from nnunet_dvcl.trainers import nnUNetTrainerU2PL

MODES = ["labels", "ignore", "regions", "regions + ignore"]
EVERYTHING = {"num_anchors": 1024, "num_queries": 1024, "num_negatives": 1100, "bank_capacity": 1100}
EVERYTHING |= {"cutmix_probability": 0.0, "views": "same"}


def _flat(volume):
    """[B, K, *S] -> [N, K] float64, voxel by voxel, batch first."""
    return volume.detach().movedim(1, -1).flatten(0, -2).double()


def _cos(a, b):
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


def naive_contrast(trainer, step, name, tau, least):
    """U2PL's loss as loops: the mean over C classes of the mean over anchors of -log e^+ / (e^+ + the sum of e^-)."""
    head = trainer.companions[f"head_{name}"]
    teacher = trainer.teacher_of(name)
    taught_head = trainer.memory["teacher_head"] if teacher == "teacher" else trainer.companions[f"head_{teacher}"]
    with torch.no_grad():
        own = head(_flat(step.features[name]).float()).double()
        taught = taught_head(_flat(step.taught_features[name]).float()).double()
        p = trainer.labels.class_probabilities(step.taught_logits[name]).movedim(1, -1).flatten(0, -2).tolist()
    similarity = torch.nn.functional.normalize(own) @ torch.nn.functional.normalize(taught).T
    labeled = step.target.numel()
    truth = step.target.flatten().tolist()
    pseudo = step.pseudo_labels[name].flatten().tolist()
    unlabeled = step.unlabeled.flatten().tolist()
    offset = step.unlabeled_offset
    assert offset in (0, labeled)
    num_classes = trainer.labels.num_classes
    low = max(1, min(3, num_classes - 2))
    anchors, negatives = [[] for _ in range(num_classes)], [[] for _ in range(num_classes)]
    for i in range(len(own)):
        by_probability = sorted(range(num_classes), key=lambda c: -p[i][c])
        is_unlabeled = i >= offset and unlabeled[i - offset]
        y = truth[i] if i < labeled and truth[i] >= 0 else pseudo[i - offset] if is_unlabeled else UNKNOWN
        if y >= 0 and p[i][y] > least:
            anchors[y].append(i)
        for rank, c in enumerate(by_probability):
            if i < labeled and truth[i] >= 0 and rank < low and c != truth[i]:
                negatives[c].append(i)
            if is_unlabeled and pseudo[i - offset] == UNKNOWN and low <= rank < 20:
                negatives[c].append(i)
    total = 0.0
    for mine, others in zip(anchors, negatives, strict=True):
        if mine and others:
            center = taught[mine].mean(0)
            losses = []
            for i in mine:
                pull = math.exp(_cos(own[i], center) / tau)
                push = sum(math.exp(s) for s in (similarity[i, others] / tau).tolist())
                losses.append(-math.log(pull / (pull + push)))
            total += sum(losses) / len(losses)
    return total / num_classes, [len(x) for x in anchors], [len(x) for x in negatives]


@pytest.mark.parametrize("host", ["native", "cps"])
@pytest.mark.parametrize("label_mode", MODES)
def test_the_contrast_is_that_of_the_loops(start, label_mode, host):
    """Draws that take everything leave nothing to chance."""
    trainer = start(nnUNetTrainerU2PL, "2d_tiny", host=host, anchor_probability=0.34, **EVERYTHING)
    step = noise_step(trainer, 0.25, ignored_rows=8 if "ignore" in label_mode else 0)
    term = trainer.ssl_terms(step)["contrast"]
    expected = 0.0
    for name in trainer.student_names:
        value, anchors, negatives = naive_contrast(trainer, step, name, 0.5, 0.34)
        expected += value
        assert all(negatives), "no class is without a negative"
        assert sum(anchors) > 100
        assert trainer.memory[f"negatives_{name}"].count.tolist() == negatives
    assert term.value.item() == pytest.approx(expected, rel=1e-4)
    assert term.weight == pytest.approx(2 * 0.1)


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("label_mode", ["labels", "regions + ignore"])
def test_the_most_uncertain_are_not_learned_from(start, label_mode, progress):
    """α_t = α_0 (1 - t) of the unlabeled voxels, those of the highest entropy."""
    trainer = start(nnUNetTrainerU2PL, "2d_tiny", cutmix_probability=0.0)
    step = noise_step(trainer, progress, ignored_rows=8 if "ignore" in label_mode else 0)
    dropped = step.unlabeled & (step.pseudo_labels["A"] == UNKNOWN)
    wanted = 0.2 * (1 - progress) * step.unlabeled.sum()
    assert wanted - 10 <= dropped.sum() <= wanted
    entropy = trainer.labels.entropy(step.unlabeled_patches(step.taught_logits["A"]))
    if dropped.any():
        assert entropy[dropped].min() >= entropy[step.unlabeled & ~dropped].max() - 1e-3
    term = trainer.ssl_terms(step)["pseudo_labels"]
    (gradient,) = torch.autograd.grad(term.value, step.logits["A"])
    learned = step.unlabeled_patches(gradient).abs().sum(1) > 0
    assert torch.equal(learned, step.unlabeled & ~dropped)


@pytest.mark.parametrize(("progress", "weight"), [(0.04, 0.0), (0.21, 2.0)])
def test_labels_alone_are_learned_at_first(start, progress, weight):
    """A teacher that knows nothing yet says background, and the student would be taught to be sure of it."""
    trainer = start(nnUNetTrainerU2PL, "2d_tiny")
    term = trainer.ssl_terms(noise_step(trainer, progress))["pseudo_labels"]
    assert term.weight == pytest.approx(weight)


def test_the_loss_is_a_mean_over_reliable_voxels(start):
    trainer = start(nnUNetTrainerU2PL, "2d_tiny")
    step = noise_step(trainer, 0.0)
    labels = step.pseudo_labels["A"]
    known = step.unlabeled & (labels != UNKNOWN)
    expected = torch.nn.functional.cross_entropy(step.logits["A"][2:], labels, ignore_index=-1, reduction="none")
    assert trainer._cross_entropy(step, "A").item() == pytest.approx(expected[known].mean().item(), rel=1e-5)


def test_the_banks_are_in_the_checkpoint(start, build_trainer, tmp_path):
    trainer = start(nnUNetTrainerU2PL, "2d_tiny")
    trainer.train_step(next(trainer.dataloader_train))
    assert (trainer.memory["negatives_A"].count > 0).all()
    file = str(tmp_path / "checkpoint.pth")
    trainer.save_checkpoint(file)
    resumed = build_trainer(nnUNetTrainerU2PL, "2d_tiny")
    resumed.load_checkpoint(file)
    for key, value in trainer.memory.state_dict().items():
        assert torch.equal(resumed.memory.state_dict()[key], value), key


def test_nothing_to_contrast_is_told(start, capsys):
    trainer = start(nnUNetTrainerU2PL, "2d_tiny", anchor_probability=1.0)
    output = trainer.train_step(next(trainer.dataloader_train))
    assert output["contrast"] == 0
    trainer.iteration = 1
    trainer.on_train_epoch_end([output])
    assert "ssl/contrast was 0 for the whole epoch: no class had anchors and negatives" in capsys.readouterr().out


@pytest.mark.parametrize("rows", [20, 60])
def test_as_many_rows_of_a_bank_as_a_class_has_anchors_are_negatives(start, rows):
    trainer = start(nnUNetTrainerU2PL, "2d_tiny", num_anchors=32, bank_capacity=64)
    bank = trainer.memory["negatives_A"]
    number, dim = bank.num_classes, trainer.config.feature_dim
    # of class 1 there is none
    classes = torch.tensor([c for c in range(number) if c != 1]).repeat(rows)
    features = torch.stack((classes, torch.arange(len(classes))), 1).float()
    bank.push(torch.nn.functional.pad(features, (0, dim - 2)), classes)
    (negatives, drawn), (others, _) = trainer._draw_negatives(bank), trainer._draw_negatives(bank)
    assert negatives.shape == (number, 32, dim)
    for c in range(number):
        of_class = negatives[c][drawn[c]]
        assert len(of_class) == (0 if c == 1 else min(rows, 32))
        assert (of_class[:, 0] == c).all()
        assert len(of_class[:, 1].unique()) == len(of_class), "each once"
    assert not torch.equal(negatives, others), "drawn anew"
