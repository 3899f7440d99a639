"""A segmentation and signed distances of one network: what each learns, from which voxels, and how much it weighs."""

import math

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from noise import noise_step

from nnunet_dvcl.data import AddSignedDistances, signed_distances
from nnunet_dvcl.networks import last_segmentation_layer, unwrap
from nnunet_dvcl.trainers import nnUNetTrainerDTC
from nnunet_dvcl.trainers.base import Term

MODES = ["labels", "ignore", "regions", "regions + ignore"]


@pytest.mark.parametrize("label_mode", MODES)
@pytest.mark.parametrize("configuration", ["2d_tiny", "3d_tiny"])
def test_the_loader_brings_the_distances_of_each_labeled_patch(start, configuration, label_mode):
    trainer = start(nnUNetTrainerDTC, configuration)
    *levels, _valid, distances = next(trainer.dataloader_train)["target"]
    assert len(levels) == len(trainer._get_deep_supervision_scales())
    target, regions = levels[0], "regions" in label_mode
    inside = target[:, :2].bool() if regions else torch.cat((target == 1, target == 2), 1)
    unknown = torch.zeros_like(inside[:, 0])
    if "ignore" in label_mode:
        unknown = target[:, 2].bool() if regions else target[:, 0] == 3
    spacing = trainer.configuration_manager.spacing
    for patch in range(len(distances)):
        expected = signed_distances(inside[patch].numpy(), unknown[patch].numpy(), spacing)
        np.testing.assert_array_equal(distances[patch].numpy(), expected)
    assert not isinstance(next(trainer.dataloader_unlabeled)["target"], list)
    assert not any(isinstance(t, AddSignedDistances) for t in trainer.unlabeled_transforms().transforms)


@pytest.mark.parametrize(("configuration", "spacing"), [("2d_tiny", [3.0, 0.5]), ("3d_tiny", [3.0, 1.0, 0.5])])
def test_distances_are_in_the_spacing_of_the_configuration(start, configuration, spacing):
    trainer = start(nnUNetTrainerDTC, configuration)
    trainer.configuration_manager.configuration["spacing"] = spacing
    patch_size = trainer.configuration_manager.patch_size
    *_, adding = trainer.get_training_transforms(patch_size, (0.0, 0.0), None, (0,), False).transforms
    assert isinstance(adding, AddSignedDistances)
    assert adding.spacing == spacing


def test_no_distance_is_computed_in_a_step(start, monkeypatch):
    trainer = start(nnUNetTrainerDTC, "2d_tiny")
    batch, trainer.dataloader_unlabeled = (
        next(trainer.dataloader_train),
        iter([next(trainer.dataloader_unlabeled)]),
    )
    monkeypatch.setattr(BasicTransform, "__call__", None)
    assert math.isfinite(trainer.train_step(batch)["total"])


@pytest.mark.parametrize("ignored_as_unlabeled", [True, False])
@pytest.mark.parametrize("label_mode", MODES)
def test_both_terms_are_those_of_the_loops(start, label_mode, ignored_as_unlabeled):
    """Labels: the sum over those beside background. Regions: the mean over them."""
    ssl = {"consistency_weight": 0.7, "signed_distance_weight": 0.2, "steepness": 20.0}
    trainer = start(nnUNetTrainerDTC, "2d_tiny", ignored_as_unlabeled=ignored_as_unlabeled, **ssl)
    step = noise_step(trainer, ignored_rows=8 if "ignore" in label_mode else 0)
    truth = 2 * torch.rand(2, 2, 16, 16) - 1
    truth[0, :, :3] = math.nan
    step.kept["true_distances"] = truth
    terms = trainer.ssl_terms(step)

    z = step.kept["distances"].detach()
    assert z.shape == (4, 2, 16, 16)
    assert (z.abs() < 1).all()
    known = truth.isfinite()
    error = (z[:2][known].double() - truth[known].double()).square().mean()
    assert terms["signed_distance"].value.item() == pytest.approx(error.item(), rel=1e-5)
    assert terms["signed_distance"].weight == pytest.approx(2 * 0.2)

    logits, regions = step.logits["A"].detach().double(), "regions" in label_mode
    p = logits.sigmoid() if regions else logits.softmax(1)[:, 1:]
    drawn = 1 / (1 + (20 * z.double()).exp())
    squares = (p - drawn).square()
    per_voxel = squares.mean(1) if regions else squares.sum(1)
    present = torch.cat((step.target >= 0, step.valid))
    present[:2] |= ignored_as_unlabeled
    assert terms["dual_task"].value.item() == pytest.approx(per_voxel[present].mean().item(), rel=1e-4)
    assert terms["dual_task"].weight == pytest.approx(2 * 0.7 * step.rampup(1.0))


@pytest.mark.parametrize("label_mode", ["labels", "ignore"])
def test_padding_of_labeled_patches_takes_no_part(start, label_mode):
    trainer = start(nnUNetTrainerDTC, "2d_tiny")
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)
    *levels, valid, distances = labeled["target"]
    levels[0][:], valid[:], distances[:] = 0, True, 0.5
    valid[:, :, :5] = False
    levels[0][:, :, 8:10] = 3 if label_mode == "ignore" else 0
    step = trainer._begin_step(labeled, unlabeled)
    assert torch.equal(step.kept["true_distances"].isfinite(), valid.expand_as(distances))
    assert torch.equal(step.present, torch.cat((valid[:, 0], step.valid)))


def test_the_consistency_alone_makes_both_draw_one_surface(start, monkeypatch):
    """The idea: without any label, the segmentation and the distances of the same images come to agree."""
    trainer = start(nnUNetTrainerDTC, "2d_tiny", rampup_fraction=0.0, signed_distance_weight=0.0)
    monkeypatch.setattr(
        trainer, "supervised_terms", lambda step: {"supervised_A": Term(0.0 * step.logits["A"].sum(), 1.0)}
    )
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)
    layer, head = last_segmentation_layer(trainer.network), trainer.companions["head_distances"]
    before = layer.weight.detach().clone(), head.weight.detach().clone()
    values = []
    for _ in range(30):
        trainer.dataloader_unlabeled = iter([unlabeled])
        values.append(trainer.train_step(labeled)["dual_task"])
    assert values[-1] < 0.5 * values[0]
    assert not torch.equal(layer.weight, before[0])
    assert not torch.equal(head.weight, before[1])


def test_distances_are_learned_from_labels(start):
    trainer = start(nnUNetTrainerDTC, "2d_tiny", num_epochs=100)
    labeled = next(trainer.dataloader_train)
    values = [trainer.train_step(labeled)["signed_distance"] for _ in range(30)]
    assert values[-1] < 0.5 * values[0]


def test_nothing_of_the_head_deploys(start, tmp_path):
    trainer = start(nnUNetTrainerDTC, "2d_tiny")
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    checkpoint = torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    assert checkpoint["network_weights"].keys() == unwrap(trainer.network).state_dict().keys()
    assert list(checkpoint["ssl_state"]["companions"]) == ["head_distances"]
