"""Two ways of weighing classes: network A by difficulty, B by rarity, each in all of its losses."""

import pytest
import torch
from naive_class_weights import naive_cross_entropy, naive_logarithmic
from noise import noise_step

from nnunet_dvcl.trainers import nnUNetTrainerDHC

MODES = ["labels", "ignore", "regions", "regions + ignore"]


def _decided(classes: torch.Tensor, regions: bool) -> torch.Tensor:
    """[B, R, *S]: of three classes, or 0 in a region, 1 out; the first region holds the second."""
    return torch.stack((classes < 1, classes < 2), 1).long() if regions else classes[:, None]


@pytest.mark.parametrize("label_mode", MODES)
def test_each_network_has_weights_of_its_own(start, label_mode):
    """The term is that of the loops: A's cross entropy with A's weights, B's with B's, every voxel."""
    trainer = start(nnUNetTrainerDHC, "2d_tiny", consistency_weight=0.7)
    step, regions = noise_step(trainer, ignored_rows=8 if "ignore" in label_mode else 0), "regions" in label_mode
    memory = trainer.memory["difficulty"]
    memory.missing.copy_(torch.rand(memory.missing.shape))
    term = trainer.ssl_terms(step)["cps"]

    hard = memory.missing * ((memory.unlearned + 1e-8) / (memory.learned + 1e-8)) ** 0.2
    known = _decided(step.target, regions).movedim(1, -1)[step.target >= 0]
    columns = []
    for r in range(known.shape[1]):
        counts = [(known[:, r] == k).sum().item() for k in range(2 if regions else 3)]
        columns.append(naive_logarithmic(counts, 0.1))
    rarity = torch.tensor(columns).T
    weights = {"A": (hard / hard.amax(0)).clamp(min=0.1), "B": rarity}
    expected = 0.0
    for name, other in ("AB", "BA"):
        torch.testing.assert_close(trainer.class_weights(name), weights[name], rtol=1e-4, atol=1e-5)
        decided = _decided(step.predicted(other), regions).movedim(1, -1)[step.present]
        logits = step.logits[name].detach().movedim(1, -1)[step.present]
        rows = [[x, 0.0] for x in logits.flatten().tolist()] if regions else logits.tolist()
        of_voxels = torch.stack([weights[name][decided[:, r], r] for r in range(decided.shape[1])], 1)
        expected += naive_cross_entropy(rows, decided.flatten().tolist(), of_voxels.flatten().tolist())
    assert term.value.item() == pytest.approx(expected, rel=1e-4)
    assert term.weight == pytest.approx(2 * 0.7 * step.rampup(1.0))


def test_the_rare_class_weighs_most_in_b_and_the_hard_one_in_a(start):
    """The idea, in both losses: the part of the gradient at voxels of class 2 against that with equal weights."""
    parts = []
    for equal in (True, False):
        trainer = start(nnUNetTrainerDHC, "2d_tiny", lowest_class_weight=1.0 if equal else 0.1)
        step = noise_step(trainer)
        step.target[:] = 0
        step.target[:, :, :3] = 1
        step.target[:, 8, 3:16] = 2
        trainer.after_forward(step)
        for buffer in ("learned", "unlearned"):
            getattr(trainer.memory["difficulty"], buffer).zero_()
        trainer.memory["difficulty"].missing.copy_(torch.tensor([[0.05], [0.2], [0.9]]))
        for name in "AB":
            given = trainer.class_weights(name)[:, 0].tolist()
            assert given == [1, 1, 1] if equal else given[0] < given[1] < given[2] == 1
        step.target_levels = trainer.labels.to_target(step.target, step.outputs["A"])
        supervised, value = trainer.supervised_terms(step), trainer.ssl_terms(step)["cps"].value
        of_target = torch.cat((step.target == 2, torch.zeros_like(step.valid)))
        for name, other in ("AB", "BA"):
            of_other = step.predicted(other) == 2
            for term, where in ((supervised[f"supervised_{name}"].value, of_target), (value, of_other)):
                (gradient,) = torch.autograd.grad(term, step.logits[name], retain_graph=True)
                norm = gradient.abs().sum(1)
                parts.append((norm[where].sum() / norm.sum()).item())
    for before, after in zip(parts[:4], parts[4:], strict=True):
        assert after > 1.2 * before > 0


@pytest.mark.parametrize("label_mode", ["labels", "regions"])
def test_the_dice_of_a_is_that_of_the_labeled_voxels(start, label_mode):
    trainer = start(nnUNetTrainerDHC, "2d_tiny")
    step, regions = noise_step(trainer, ignored_rows=3), label_mode == "regions"
    p = step.logits["A"][:2].detach().double()
    known = step.target >= 0
    for k, r in [(0, 0), (1, 0), (0, 1)] if regions else [(0, 0), (1, 0), (2, 0)]:
        y = _decided(step.target, regions)[:, r][known] == k
        if regions:
            q = p[:, r].sigmoid()[known]
            q = q if k == 0 else 1 - q
        else:
            q = p.softmax(1)[:, k][known]
        dice = (2 * q[y].sum() + 1e-5) / (q.sum() + y.sum() + 1e-5)
        assert trainer.memory["difficulty"].last_dice[k, r].item() == pytest.approx(dice.item(), rel=1e-4)


@pytest.mark.parametrize("label_mode", ["labels", "ignore"])
def test_shares_are_counted_in_labels_and_then_in_what_b_predicts(start, label_mode):
    trainer = start(nnUNetTrainerDHC, "2d_tiny", num_iterations_per_epoch=4)
    step = noise_step(trainer, ignored_rows=4 if label_mode == "ignore" else 0)
    shares = trainer.memory["class_shares"].shares
    known = step.target[step.target >= 0]
    of_labels = torch.stack([(known == c).float().mean() for c in range(3)])
    torch.testing.assert_close(shares[:, 0], of_labels)
    trainer.iteration = 4
    step._predicted["B"] = torch.randint(0, 2, step.predicted("B").shape)
    trainer.after_forward(step)
    predicted = step.unlabeled_patches(step.predicted("B"))[step.unlabeled]
    of_predictions = torch.stack([(predicted == c).float().mean() for c in range(3)])
    torch.testing.assert_close(shares[:, 0], 0.99 * of_labels + 0.01 * of_predictions)


def test_a_training_weighs_classes(start):
    trainer = start(nnUNetTrainerDHC, "2d_tiny")
    for _ in range(4):
        output = trainer.train_step(next(trainer.dataloader_train))
    assert trainer.iteration > trainer.num_iterations_per_epoch
    assert trainer.memory["class_shares"].shares.sum().item() == pytest.approx(1.0)
    assert 1 < output["weight_ratio_B"] <= 10.001
    assert 1 < output["weight_ratio_A"] <= 10.001
    assert output["cps"] > 0
