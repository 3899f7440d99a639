"""Learning from pseudo-labels: who sees what, what moves together, how much it counts, what takes no part."""

import math

import pytest
import torch
from torch.nn import functional as F

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.labels import UNKNOWN
from nnunet_dvcl.networks import full_resolution
from nnunet_dvcl.trainers import (
    nnUNetTrainerCPS,
    nnUNetTrainerCPS_SameView,
    nnUNetTrainerDVCL,
    nnUNetTrainerDVCL_noQDS,
    nnUNetTrainerDVCL_SameView,
    nnUNetTrainerMT_WeakStrong,
)
from nnunet_dvcl.trainers.base import pseudo_labels
from nnunet_dvcl.voxels.cutmix import CutMix

FULL = {"consistency_start": 0.0, "rampup_fraction": 0.0}


def _step_of(trainer):
    """A training step as the method saw it, its terms, and what went into each network."""
    steps, terms, seen, ssl_terms = [], [], [], trainer.ssl_terms
    networks = trainer.networks()
    for name, network in networks.items():
        network.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.append((name, inputs[0].clone(), torch.is_grad_enabled()))
        )
    trainer.ssl_terms = lambda step: steps.append(step) or terms.append(ssl_terms(step)) or terms[0]
    trainer.train_step(next(trainer.dataloader_train))
    return steps[0], terms[0], seen


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerCPS, nnUNetTrainerDVCL, nnUNetTrainerMT_WeakStrong])
@pytest.mark.parametrize("configuration", ["2d_tiny", "3d_tiny"])
def test_teachers_see_unlabeled_weak_views_and_students_everything_strong(start, trainer_class, configuration):
    trainer = start(trainer_class, configuration, views="weak_strong", cutmix_probability=0.0)
    step, _, seen = _step_of(trainer)
    weak, strong = step.image.chunk(2, dim=1)
    assert not torch.equal(weak, strong)
    taught = [(name, image) for name, image, with_gradient in seen if not with_gradient]
    learned = [(name, image) for name, image, with_gradient in seen if with_gradient]
    assert [name for name, _ in taught] == (["teacher"] if "teacher" in trainer.networks() else ["B", "A"])
    assert [name for name, _ in learned] == list(trainer.student_names)
    assert all(torch.equal(image, weak[step.num_labeled :]) for _, image in taught)
    assert all(torch.equal(image, strong) for _, image in learned)
    assert next(trainer.dataloader_val)["data"].shape[1] == 1, "validation sees one view"


def test_pseudo_labels_are_the_other_networks_on_the_weak_view(start):
    trainer = start(nnUNetTrainerCPS, "2d_tiny", views="weak_strong", cutmix_probability=0.0)
    batch, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)
    weak = unlabeled["data"].chunk(2, dim=1)[0]
    with torch.no_grad():
        expected = {n: full_resolution(trainer.students()[o](weak)).argmax(1) for n, o in (("A", "B"), ("B", "A"))}
    trainer.dataloader_unlabeled = iter([unlabeled])
    steps, ssl_terms = [], trainer.ssl_terms
    trainer.ssl_terms = lambda step: steps.append(step) or ssl_terms(step)
    trainer.train_step(batch)
    for name, labels in steps[0].pseudo_labels.items():
        assert torch.equal(labels, expected[name])
    assert not torch.equal(*steps[0].pseudo_labels.values())


@pytest.mark.parametrize("views", ["same", "weak_strong"])
def test_image_pseudo_label_and_valid_voxels_change_places_together(start, monkeypatch, views):
    trainer = start(nnUNetTrainerCPS, "2d_tiny", views=views, cutmix_probability=1.0)
    space = trainer.configuration_manager.patch_size
    box = torch.zeros(2, *space, dtype=torch.bool)
    box[0, :, :5] = True
    mixing = CutMix(box, torch.tensor([1, 0]))
    drawn = []
    monkeypatch.setattr(pseudo_labels, "draw_cutmix", lambda *args: drawn.append(args) or mixing)
    unlabeled = next(trainer.dataloader_unlabeled)
    unlabeled["target"][1, :, :, 3:] = -1
    trainer.dataloader_unlabeled = iter([unlabeled])
    step, _, seen = _step_of(trainer)
    assert drawn == [(2, torch.Size(space), 1.0, trainer.device)]

    weak, strong = step.image.chunk(2, dim=1) if views == "weak_strong" else (step.image, step.image)
    (student,) = {id(image): image for name, image, gradient in seen if gradient and name == "A"}.values()
    assert torch.equal(student[: step.num_labeled], strong[: step.num_labeled]), "labeled patches stay as they are"
    assert torch.equal(student[2, :, :, :5], strong[3, :, :, :5])
    assert torch.equal(student[2, :, :, 5:], strong[2, :, :, 5:])
    assert torch.equal(student[3], strong[3])
    assert step.valid[0, :, :3].all()
    assert not step.valid[0, :, 3:5].any(), "padding came along"
    assert step.valid[0, :, 5:].all()
    taught = [image for _, image, gradient in seen if not gradient]
    assert all(torch.equal(image, weak[2:]) for image in taught), "teachers see nothing mixed"


def test_one_view_without_mixing_needs_no_second_pass(start):
    trainer = start(nnUNetTrainerCPS_SameView, "2d_tiny")
    step, _, seen = _step_of(trainer)
    assert [(name, gradient) for name, _, gradient in seen] == [("A", True), ("B", True)]
    unlabeled = {name: step.unlabeled_patches(step.predicted(name)) for name in "AB"}
    assert torch.equal(step.pseudo_labels["A"], unlabeled["B"])
    assert torch.equal(step.pseudo_labels["B"], unlabeled["A"])


def test_the_weight_is_0_then_rises_and_is_that_of_the_labels(start):
    trainer = start(nnUNetTrainerCPS, "2d_tiny", num_epochs=10, num_iterations_per_epoch=10)
    for iteration, expected in ((0, 0), (4, 0), (5, math.exp(-5)), (14, math.exp(-5 * 0.4**2)), (20, 1), (99, 1)):
        trainer.iteration = iteration
        output = trainer.train_step(next(trainer.dataloader_train))
        assert output["rampup"] == pytest.approx(expected)
        supervised = output["supervised_A"] + output["supervised_B"]
        assert output["total"] == pytest.approx(supervised + expected * output["cps"], rel=1e-5)


def test_cross_entropy_weighs_twice_as_the_papers_do(start):
    trainer = start(nnUNetTrainerCPS, "2d_tiny", pseudo_label_loss="ce", consistency_weight=0.5, **FULL)
    output = trainer.train_step(next(trainer.dataloader_train))
    supervised = output["supervised_A"] + output["supervised_B"]
    assert output["total"] == pytest.approx(supervised + 2 * 0.5 * output["cps"], rel=1e-5)


@pytest.mark.parametrize("label_mode", ["labels", "ignore", "regions", "regions + ignore"])
def test_the_loss_is_nnunets_on_every_level_and_blind_to_what_is_unknown(start, label_mode):
    """Equal to nnU-Net's own loss on a label map that has an ignore label there."""
    trainer = start(nnUNetTrainerCPS, "2d_tiny", cutmix_probability=0.0, **FULL)
    unlabeled = next(trainer.dataloader_unlabeled)
    unlabeled["target"][:, :, :5] = -1
    trainer.dataloader_unlabeled = iter([unlabeled])
    step, terms, _ = _step_of(trainer)

    ignore = 3  # the first label that is free, or the data set's own
    expected = 0.0
    for name, output in step.outputs.items():
        label_map = step.pseudo_labels[name].where(step.unlabeled, torch.tensor(ignore))[:, None].float()
        levels = []
        for level in output:
            target = F.interpolate(label_map, level.shape[2:], mode="nearest-exact")
            if "regions" in label_mode:
                target = torch.cat([target.eq(1) | target.eq(2), target.eq(2), target.eq(ignore)], 1).float()
            levels.append(target)
        outputs = [step.unlabeled_patches(level) for level in output]
        expected += float(trainer._loss_of_known(outputs, levels))
        changed = [
            torch.where(target[:, -1:] == (1 if "regions" in label_mode else ignore), 5.0, level)
            for level, target in zip(outputs, levels, strict=True)
        ]
        assert float(trainer._loss_of_known(changed, levels)) == pytest.approx(
            float(trainer._loss_of_known(outputs, levels)), rel=1e-5
        )
    assert terms["cps"].value.item() == pytest.approx(expected, rel=1e-5)
    assert trainer.label_manager.has_ignore_label == ("ignore" in label_mode), "nnU-Net's own labels are as they were"
    assert (step.pseudo_labels["A"] != UNKNOWN).all()


def test_the_loss_without_unknown_voxels_is_the_supervised_one(start):
    trainer = start(nnUNetTrainerCPS, "2d_tiny")
    batch = next(trainer.dataloader_train)
    output = trainer.network(batch["data"])
    supervised = trainer.loss(output, batch["target"])
    assert float(trainer._loss_of_known(output, batch["target"])) == pytest.approx(float(supervised), rel=1e-6)


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerCPS, nnUNetTrainerMT_WeakStrong])
def test_teachers_keep_their_weights_in_a_step_of_pseudo_labels_alone(start, trainer_class):
    """The student moves by the unsupervised term; what gave the label gets no gradient of it."""
    trainer = start(trainer_class, "2d_tiny", **FULL)
    _, terms, _ = _step_of(trainer)
    trainer.optimizer.zero_grad()
    assert all(not p.requires_grad for p in trainer.memory.parameters())
    assert all(term.value.requires_grad for term in terms.values())


# ---------------------------------------------------------------- checkpoints of before


def _of_before(trainer, file) -> None:
    """A checkpoint as it was written when one view was all there was."""
    trainer.save_checkpoint(file)
    checkpoint = torch.load(file, weights_only=False)
    state = checkpoint["ssl_state"]
    state["trainer"] = state["trainer"].replace("_SameView", "")
    for key in ("views", "cutmix_probability", "pseudo_label_loss", "consistency_start"):
        del state["config"][key]
    torch.save(checkpoint, file)


@pytest.mark.parametrize("length", ["", "_2epochs"])
def test_a_checkpoint_of_before_goes_on_with_the_same_view(build_trainer, start, tmp_path, length):
    import nnunet_dvcl.trainers as trainers

    file = str(tmp_path / "checkpoint_latest.pth")
    _of_before(start(getattr(trainers, f"nnUNetTrainerDVCL_SameView{length}"), "2d_tiny"), file)
    with pytest.raises(UserError) as error:
        build_trainer(getattr(trainers, f"nnUNetTrainerDVCL{length}"), "2d_tiny").load_checkpoint(file)
    assert f"use -tr nnUNetTrainerDVCL_SameView{length}" in str(error.value)
    assert f"rename the folder nnUNetTrainerDVCL{length}__" in str(error.value)
    resumed = build_trainer(getattr(trainers, f"nnUNetTrainerDVCL_SameView{length}"), "2d_tiny")
    resumed.load_checkpoint(file)
    assert resumed.iteration == 2


def test_a_checkpoint_of_before_without_a_trainer_of_its_own_says_which_values_to_set(build_trainer, start, tmp_path):
    same = {"views": "same", "cutmix_probability": 0.0, "pseudo_label_loss": "ce", "consistency_start": 0.0}
    same |= {"consistency_weight": 0.1, "rampup_fraction": 1.0}
    file = str(tmp_path / "checkpoint_latest.pth")
    _of_before(start(nnUNetTrainerDVCL_noQDS, "2d_tiny", **same), file)
    with pytest.raises(UserError, match=r"ssl\.cutmix_probability: 0\.0 there, 0\.5 here"):
        build_trainer(nnUNetTrainerDVCL_noQDS, "2d_tiny").load_checkpoint(file)
    resumed = build_trainer(nnUNetTrainerDVCL_noQDS, "2d_tiny", **same)
    resumed.load_checkpoint(file)
    assert resumed.iteration == 2


def test_a_checkpoint_of_today_is_taken_as_it_is(build_trainer, start, tmp_path):
    file = str(tmp_path / "checkpoint_latest.pth")
    start(nnUNetTrainerDVCL, "2d_tiny").save_checkpoint(file)
    with pytest.raises(UserError, match="checkpoint of nnUNetTrainerDVCL, this run is nnUNetTrainerDVCL_SameView"):
        build_trainer(nnUNetTrainerDVCL_SameView, "2d_tiny").load_checkpoint(file)
