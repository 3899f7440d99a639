"""The mean teacher: what the teacher sees, who learns from whom, and how much it weighs."""

import pytest
import torch
from noise import noise_step

from nnunet_dvcl.networks import unwrap
from nnunet_dvcl.trainers import nnUNetTrainerMT
from nnunet_dvcl.trainers.base import Term


def weights(network) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(unwrap(network).parameters()).detach().clone()


def teach_by(trainer, monkeypatch) -> list[torch.Tensor]:
    """The images that the teacher is shown from now on."""
    seen, teach = [], trainer.teach
    monkeypatch.setattr(trainer, "teach", lambda image: seen.append(image) or teach(image))
    return seen


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_the_teacher_sees_noise_that_the_student_does_not(start, monkeypatch, noise):
    trainer = start(nnUNetTrainerMT, teacher_noise=noise)
    shown, seen = [], teach_by(trainer, monkeypatch)
    trainer.network.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)
    trainer.dataloader_unlabeled = iter([unlabeled])
    trainer.train_step(labeled)
    assert torch.equal(shown[0], torch.cat((labeled["data"], unlabeled["data"])))
    difference = seen[0] - unlabeled["data"]
    assert difference.abs().max() == pytest.approx(2 * noise, rel=1e-4)
    # a normal distribution that is clamped at two standard deviations
    assert difference.std() == pytest.approx(0.96 * noise, rel=0.05)
    assert difference.mean().abs() < 0.05 * noise


def test_the_channels_of_a_previous_stage_get_no_noise(start):
    trainer = start(nnUNetTrainerMT, "2d_tiny")
    image = torch.randn(2, 3, 16, 16)
    noisy = trainer.with_noise(image)
    assert torch.equal(noisy[:, 1:], image[:, 1:])
    assert (noisy[:, 0] != image[:, 0]).all()


def squared_distance(p, q, regions: bool) -> float:
    distance = sum((a - b) ** 2 for a, b in zip(p, q, strict=True))
    return distance / len(p) if regions else distance / 2


@pytest.mark.parametrize("label_mode", ["labels", "ignore", "regions", "regions + ignore"])
def test_the_term_is_the_distance_from_the_teacher_on_unlabeled_voxels(start, monkeypatch, label_mode):
    """Labels: half of the squared distance of two distributions. Regions: the mean squared error over them."""
    trainer = start(nnUNetTrainerMT, "2d_tiny", consistency_weight=0.3)
    step = noise_step(trainer, ignored_rows=8 if "ignore" in label_mode else 0)
    taught = torch.randn_like(step.unlabeled_patches(step.logits["A"]))
    monkeypatch.setattr(trainer, "teach", lambda image: taught)
    term = trainer.ssl_terms(step)["consistency"]

    regions = "regions" in label_mode
    squash = torch.sigmoid if regions else lambda x: x.softmax(1)
    student = step.unlabeled_patches(step.logits["A"])
    p, q = (squash(x.detach().double()).movedim(1, -1).flatten(0, -2).tolist() for x in (student, taught))
    unlabeled = step.unlabeled.flatten().tolist()
    assert len(unlabeled) == len(p)
    distances = [squared_distance(a, b, regions) for a, b, u in zip(p, q, unlabeled, strict=True) if u]
    assert term.value.item() == pytest.approx(sum(distances) / len(distances), rel=1e-5)
    assert term.weight == pytest.approx(2 * 0.3 * step.rampup(1.0))


def test_the_term_alone_moves_the_student_and_never_the_teacher(start, monkeypatch):
    """The idea: the teacher is an average. What pulls at the student does not pull at it."""
    trainer = start(nnUNetTrainerMT, "2d_tiny")
    monkeypatch.setattr(
        trainer, "supervised_terms", lambda step: {"supervised_A": Term(0.0 * step.logits["A"].sum(), 1.0)}
    )
    monkeypatch.setattr(trainer, "averages", dict)
    trainer.optimizer.param_groups[0]["weight_decay"] = 0.0
    student, teacher = weights(trainer.network), weights(trainer.memory["teacher"])
    assert trainer.train_step(next(trainer.dataloader_train))["consistency"] > 0
    assert not torch.equal(weights(trainer.network), student)
    assert torch.equal(weights(trainer.memory["teacher"]), teacher)
    assert all(p.grad is None for p in trainer.memory["teacher"].parameters())


def test_the_teacher_lags_behind_and_deploys_on_wish(start, tmp_path):
    trainer = start(nnUNetTrainerMT, "2d_tiny")
    before = weights(trainer.network)
    for _ in range(3):
        trainer.train_step(next(trainer.dataloader_train))
    moved = (weights(trainer.network) - before).norm()
    assert 0 < (weights(trainer.memory["teacher"]) - weights(trainer.network)).norm() < moved
    assert list(trainer.networks()) == ["A", "teacher"]


def test_padding_only_gives_zero_and_a_reason(start, capsys):
    trainer = start(nnUNetTrainerMT, "2d_tiny")
    unlabeled = next(trainer.dataloader_unlabeled)
    unlabeled["target"][:] = -1
    trainer.dataloader_unlabeled = iter([unlabeled])
    output = trainer.train_step(next(trainer.dataloader_train))
    assert output["consistency"] == 0
    trainer.on_train_epoch_end([output])
    assert "ssl/consistency was 0 for the whole epoch: every unlabeled patch was padding" in capsys.readouterr().out
