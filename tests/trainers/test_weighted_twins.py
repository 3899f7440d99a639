"""Two networks whose losses have a weight for each class: nnU-Net's where weights are equal, the loops' where not."""

import math

import pytest
import torch
from naive_class_weights import naive_cross_entropy, naive_dice_loss, softmax
from noise import noise_step

from nnunet_dvcl.trainers import nnUNetTrainerCLD
from nnunet_dvcl.trainers.base.step import patches_of

MODES = ["labels", "ignore", "regions", "regions + ignore"]


def _output_and_target(trainer):
    batch = next(trainer.dataloader_train)
    *levels, _valid = batch["target"]
    torch.manual_seed(0)
    with torch.no_grad():
        output = trainer.network(batch["data"] + torch.randn_like(batch["data"]))
    return [3 * level for level in output], levels


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("label_mode", MODES)
@pytest.mark.parametrize("configuration", ["2d_tiny", "3d_tiny"])
def test_with_equal_weights_the_loss_is_nnunets(start, configuration, label_mode, batch_dice, tiny_dataset):
    plans = tiny_dataset.plans
    plans["configurations"][configuration]["batch_dice"] = batch_dice
    tiny_dataset.write_plans(plans)
    trainer = start(nnUNetTrainerCLD, configuration)
    assert trainer.configuration_manager.batch_dice == batch_dice
    output, levels = _output_and_target(trainer)
    weights = torch.full((trainer.labels.num_options, trainer.labels.num_decisions), 0.3)
    given = trainer.class_weighted_loss(output, levels, weights)
    if label_mode == "regions + ignore":  # there nnU-Net's BCE is the sum over the regions, not the mean
        trainer.loss.loss.weight_ce = 1 / 2
    assert given.item() == pytest.approx(trainer.loss(output, levels).item(), rel=1e-5)
    one = trainer.class_weighted_loss(output[0], levels[0], weights)
    assert one.item() == pytest.approx(trainer.loss.loss(output[0], levels[0]).item(), rel=1e-5)


@pytest.mark.parametrize("label_mode", MODES)
def test_with_other_weights_the_loss_is_that_of_the_loops(start, label_mode):
    trainer = start(nnUNetTrainerCLD, "2d_tiny")
    output, levels = _output_and_target(trainer)
    logits, target, regions = output[0].double(), levels[0], "regions" in label_mode
    weights = torch.tensor([[1.0, 5.0], [0.5, 2.0]]) if regions else torch.tensor([[1.0], [2.0], [7.0]])
    given = trainer._loss_of_level(logits, target, weights.double())

    rows = logits.movedim(1, -1).flatten(0, -2).tolist()
    marks = target.movedim(1, -1).flatten(0, -2).long().tolist()
    pairs, classes, of_voxels, p, truth = [], [], [], [], []
    for row, mark in zip(rows, marks, strict=True):
        if (mark[-1] == 1 if regions else mark[0] == 3) and "ignore" in label_mode:
            continue
        if regions:
            for r in range(2):
                pairs.append([row[r], 0.0])
                classes.append(1 - mark[r])
                of_voxels.append(weights[1 - mark[r], r].item())
            p.append([1 / (1 + math.exp(-x)) for x in row])
            truth.append([m == 1 for m in mark[:2]])
        else:
            pairs.append(row)
            classes.append(mark[0])
            of_voxels.append(weights[mark[0], 0].item())
            p.append(softmax(row)[1:])
            truth.append([mark[0] == 1, mark[0] == 2])
    of_foreground = weights[0].tolist() if regions else weights[1:, 0].tolist()
    assert trainer.configuration_manager.batch_dice, "all patches are one"
    expected = naive_cross_entropy(pairs, classes, of_voxels) + naive_dice_loss(p, truth, of_foreground)
    assert given.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("label_mode", MODES)
def test_the_shares_are_those_of_the_labeled_voxels_so_far(start, label_mode):
    trainer = start(nnUNetTrainerCLD, "2d_tiny")
    step = noise_step(trainer, ignored_rows=4 if "ignore" in label_mode else 0)
    known = step.target[step.target >= 0]
    if "regions" in label_mode:
        counts = [[(known >= 1).sum(), (known == 2).sum()], [(known < 1).sum(), (known != 2).sum()]]
    else:
        counts = [[(known == c).sum()] for c in range(3)]
    expected = torch.tensor(counts) / len(known)
    shares = trainer.memory["class_shares"].shares
    torch.testing.assert_close(shares, expected, msg="the first step")
    shares.fill_(0.2)
    trainer.iteration = 3
    trainer.after_forward(step)
    torch.testing.assert_close(shares, (3 * 0.2 + expected) / 4)


def test_levels_of_an_output_keep_their_factors(start):
    trainer = start(nnUNetTrainerCLD, "2d_tiny")
    output, levels = _output_and_target(trainer)
    weights = torch.tensor([[1.0], [2.0], [7.0]])
    alone = [trainer._loss_of_level(*level, weights) for level in zip(output, levels, strict=True)]
    factors = trainer.loss.weight_factors
    expected = sum(factor * value for factor, value in zip(factors, alone, strict=True))
    assert trainer.class_weighted_loss(output, levels, weights).item() == pytest.approx(expected.item())
    assert len(patches_of(output, slice(1))) == len(alone) > 1
