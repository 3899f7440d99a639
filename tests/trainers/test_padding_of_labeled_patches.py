"""Padding of labeled patches is background to nnU-Net's loss, and nothing to a method."""

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.nn import functional as F

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.labels import UNKNOWN
from nnunet_dvcl.trainers import nnUNetTrainerCPS, nnUNetTrainerDVCL, nnUNetTrainerDVCL_Paper

ROWS = 5  # of padding, at the top of each labeled patch


def _begun(trainer, padded: bool):
    """A step of two labeled patches of background, and its batches."""
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)
    *levels, valid = labeled["target"]
    for level in levels:
        level[:] = 0
    valid[:] = True
    if padded:
        valid[:, :, :ROWS] = False
    return trainer._begin_step(labeled, unlabeled)


def _run(trainer, step):
    """With networks that call every voxel background."""
    step.views = trainer.views(step)
    background = F.one_hot(torch.zeros(step.image[:, 0].shape, dtype=torch.long), 3).movedim(-1, 1).float() * 9
    for name, network in trainer.students().items():
        step.outputs[name] = [network(step.views[name])[0] * 0 + background]
    if hasattr(trainer, "taps"):
        trainer.after_forward(step)
    return step


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerDVCL, nnUNetTrainerDVCL_Paper])
def test_the_loader_says_what_padding_is(start, trainer_class):
    trainer = start(trainer_class, "2d_tiny")
    padded = False
    for _ in range(20):
        batch = next(trainer.dataloader_train)
        *levels, valid = batch["target"]
        assert valid.shape == (2, 1, 16, 16)
        assert valid.dtype == torch.bool
        assert (levels[0][~valid] == 0).all(), "nnU-Net makes background of it"
        assert len(levels) == len(trainer._get_deep_supervision_scales() or [1])
        padded |= not valid.all()
    assert padded


class _OwnTransforms(nnUNetTrainerCPS):
    """As trainers of nnU-Net change the augmentation."""

    get_training_transforms = staticmethod(nnUNetTrainer.get_training_transforms)


def test_a_trainer_whose_transforms_say_nothing_of_it_is_told(start):
    with pytest.raises(UserError, match=r"_OwnTransforms marks no valid voxels.*with_valid_voxels"):
        start(_OwnTransforms, "2d_tiny")


def test_it_is_no_anchor_and_no_mistake(start):
    trainer = start(nnUNetTrainerDVCL, "2d_tiny", cutmix_probability=0.0)
    for padded in (False, True):
        step = _run(trainer, _begun(trainer, padded))
        voxels = trainer._select(step, "A")
        of_labeled = voxels.anchors[: step.num_labeled]
        assert (of_labeled[:, ROWS:] == 0).all(), "rightly predicted background"
        assert (of_labeled[:, :ROWS] == (UNKNOWN if padded else 0)).all()
        assert (voxels.mistaken == UNKNOWN).all()


@pytest.mark.parametrize("label_mode", ["ignore", "regions + ignore"])
def test_it_is_no_unlabeled_voxel_though_its_class_is_not_known(start, label_mode):
    trainer = start(nnUNetTrainerCPS, "2d_tiny", cutmix_probability=0.0)
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)
    *levels, valid = labeled["target"]
    for level in levels:  # all ignored
        level[:] = 0
        level[:, -1] = 3 if label_mode == "ignore" else 1
    valid[:] = True
    valid[:, :, :ROWS] = False
    step = trainer._begin_step(labeled, unlabeled)
    assert (step.target == UNKNOWN).all()
    assert torch.equal(step.unlabeled[:2], valid[:, 0])


def test_the_supervised_loss_is_nnunets(start):
    trainer = start(nnUNetTrainerCPS, "2d_tiny", cutmix_probability=0.0)
    step, without = _begun(trainer, padded=True), _begun(trainer, padded=False)
    assert len(step.target_levels) == len(trainer._get_deep_supervision_scales())
    for one, other in zip(step.target_levels, without.target_levels, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("label_mode", ["labels", "ignore"])
def test_it_is_not_present(start, label_mode):
    trainer = start(nnUNetTrainerCPS, "2d_tiny", cutmix_probability=0.0)
    step = _begun(trainer, padded=True)
    assert not step.present[:2, :ROWS].any()
    assert step.present[:2, ROWS:].all()
    assert torch.equal(step.present[2:], step.valid)
