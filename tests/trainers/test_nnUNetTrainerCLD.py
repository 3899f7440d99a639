"""Rare classes weigh more, uncertain ones are sampled more often: in which losses, at which voxels, and how much."""

import pytest
import torch
from naive_class_weights import naive_cross_entropy, naive_power
from noise import noise_step

from nnunet_dvcl.trainers import nnUNetTrainerCLD

MODES = ["labels", "ignore", "regions", "regions + ignore"]


def _pairs(logits: torch.Tensor, regions: bool) -> list[list[list[float]]]:
    """For each voxel and decision its logits: of the classes, or of in and out."""
    rows = logits.detach().double().movedim(1, -1).flatten(0, -2).tolist()
    return [[[x, 0.0] for x in row] if regions else [row] for row in rows]


def _decided(classes: torch.Tensor, regions: bool) -> list[list[int]]:
    """For each voxel and decision its class: of three, or 0 in a region, 1 out; the first holds the second."""
    return [[int(c < 1), int(c < 2)] if regions else [c] for c in classes.flatten().tolist()]


@pytest.mark.parametrize("ignored_as_unlabeled", [True, False])
@pytest.mark.parametrize("label_mode", MODES)
def test_the_term_is_that_of_the_loops(start, label_mode, ignored_as_unlabeled):
    """The cross entropy of each network with what the other predicts, class weights from the labels, every voxel."""
    ssl = {"sampling_power": 0.0, "consistency_weight": 0.7, "class_weight_power": 0.4}
    trainer = start(nnUNetTrainerCLD, "2d_tiny", ignored_as_unlabeled=ignored_as_unlabeled, **ssl)
    step = noise_step(trainer, ignored_rows=8 if "ignore" in label_mode else 0)
    term, regions = trainer.ssl_terms(step)["cps"], "regions" in label_mode

    known = _decided(step.target[step.target >= 0], regions)
    weights = []
    for r in range(len(known[0])):
        counts = [sum(decided[r] == k for decided in known) for k in range(2 if regions else 3)]
        weights.append(naive_power(counts, 0.4))
    assert len(set(weights[0])) == len(weights[0])
    present = torch.cat((step.target >= 0, step.valid))
    present[:2] |= ignored_as_unlabeled
    expected = 0.0
    for name, other in ("AB", "BA"):
        rows, classes, of_voxels = [], [], []
        decided = _decided(step.predicted(other), regions)
        for pairs, choices, takes_part in zip(
            _pairs(step.logits[name], regions), decided, present.flatten().tolist(), strict=True
        ):
            rows += pairs
            classes += choices
            of_voxels += [takes_part * weights[r][c] for r, c in enumerate(choices)]
        expected += naive_cross_entropy(rows, classes, of_voxels)
    assert term.value.item() == pytest.approx(expected, rel=1e-4)
    assert term.weight == pytest.approx(2 * 0.7 * step.rampup(1.0))


def _with_rare_class(step):
    """Labels of which a 20th is of class 2, a fifth of class 1."""
    step.target[:] = 0
    step.target[:, :, :3] = 1
    step.target[:, 8, 3:16] = 2
    return step


def test_the_rare_class_weighs_most_in_both_losses(start):
    """The idea: with equal weights the rare class has a smaller part of the gradient."""
    parts = {}
    for power in (0.0, 1 / 3):
        trainer = start(nnUNetTrainerCLD, "2d_tiny", class_weight_power=power, sampling_power=0.0)
        step = _with_rare_class(noise_step(trainer))
        trainer.after_forward(step)
        weights = trainer.class_weights("A")[:, 0].tolist()
        if power == 0:
            assert weights == [1, 1, 1]
        else:
            assert 1 == weights[0] < weights[1] < weights[2]
        step.target_levels = trainer.labels.to_target(step.target, step.outputs["A"])
        supervised = trainer.supervised_terms(step)["supervised_A"].value
        value = trainer.ssl_terms(step)["cps"].value
        of_target = torch.cat((step.target, torch.full_like(step.valid, -1, dtype=torch.int64)))
        for term, where in ((supervised, of_target == 2), (value, step.predicted("B") == 2)):
            (gradient,) = torch.autograd.grad(term, step.logits["A"], retain_graph=True)
            norm = gradient.abs().sum(1)
            parts.setdefault(power, []).append((norm[where].sum() / norm.sum()).item())
    for equal, weighted in zip(parts[0.0], parts[1 / 3], strict=True):
        assert weighted > 1.2 * equal > 0


@pytest.mark.parametrize("label_mode", ["labels", "regions"])
def test_the_confidence_is_the_mean_probability_of_the_true_class(start, label_mode):
    trainer = start(nnUNetTrainerCLD, "2d_tiny")
    step = noise_step(trainer, ignored_rows=3)
    regions = label_mode == "regions"
    for name in "AB":
        found = trainer.memory[f"confidence_{name}"].confidence
        p = step.logits[name][:2].detach().double()
        for c in range(3):
            if regions:
                inside = step.target >= 1
                expected = p[:, 0].sigmoid()[inside & (step.target >= 0)].mean()
                assert found[0, 0].item() == pytest.approx(expected.item(), rel=1e-4)
                outside = (step.target >= 0) & ~inside
                assert found[1, 0].item() == pytest.approx(1 - p[:, 0].sigmoid()[outside].mean().item(), rel=1e-4)
            else:
                assert found[c, 0].item() == pytest.approx(p.softmax(1)[:, c][step.target == c].mean().item(), rel=1e-4)


@pytest.mark.parametrize("label_mode", MODES)
def test_voxels_are_drawn_by_how_uncertain_their_class_is(start, label_mode):
    """The idea: of what a network is sure of it learns from few voxels, of what it is not sure of from all."""
    trainer = start(nnUNetTrainerCLD, "2d_tiny")
    step = noise_step(trainer, ignored_rows=4 if "ignore" in label_mode else 0)
    memory = trainer.memory["confidence_A"]
    memory.seen.fill_(True)
    memory.confidence.fill_(0.2)
    memory.confidence[0] = 0.95
    step._predicted["A"] = torch.randint(0, 3, step.predicted("A").shape)
    draws = torch.stack([trainer.followed(step, "A").float() for _ in range(200)]).mean(0)
    decided = trainer.labels.decided(step.predicted("A"))
    present = step.present[:, None].expand_as(decided)
    assert not draws[~present].any()
    assert (draws[present & (decided != 0)] == 1).all()
    sure = draws[present & (decided == 0)]
    assert sure.mean().item() == pytest.approx((0.05 / 0.8) ** 0.5, abs=0.02)
    assert sure.std() > 0.01, "each voxel by itself"


def test_each_network_samples_by_its_own_confidence_and_learns_from_the_other(start, monkeypatch):
    trainer = start(nnUNetTrainerCLD, "2d_tiny")
    step = noise_step(trainer)
    for name, sure_of in (("A", 0), ("B", 1)):
        memory = trainer.memory[f"confidence_{name}"]
        memory.seen.fill_(True)
        memory.confidence.fill_(0.0)
        memory.confidence[sure_of] = 1.0  # never drawn
        step._predicted[name] = torch.randint(0, 3, step.predicted(name).shape)
    value = trainer.ssl_terms(step)["cps"].value
    for name, sure_of in (("A", 0), ("B", 1)):
        (gradient,) = torch.autograd.grad(value, step.logits[name], retain_graph=True)
        reached = gradient.abs().sum(1) > 0
        assert torch.equal(reached, (step.predicted(name) != sure_of) & step.present)
        assert step.statistics[f"followed_{name}"] == pytest.approx(
            (reached.sum() / step.present.sum()).item(), rel=1e-5
        )


def test_the_rare_class_is_weighted_in_a_training(start):
    trainer = start(nnUNetTrainerCLD, "2d_tiny")
    for _ in range(3):
        output = trainer.train_step(next(trainer.dataloader_train))
    shares = trainer.memory["class_shares"].shares[:, 0]
    assert shares.sum().item() == pytest.approx(1.0)
    assert shares[0] == shares.max()
    assert torch.equal(shares.sort().indices, trainer.class_weights("A")[:, 0].sort(descending=True).indices)
    assert output["weight_ratio_A"] > 1.3
    assert 0 < output["followed_A"] <= 1
    assert output["cps"] > 0
