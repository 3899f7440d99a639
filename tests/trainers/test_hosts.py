"""Methods of contrast on two hosts: who teaches whom, what a teacher says, and what moves by it."""

import pytest
import torch
from noise import noise_step
from torch.nn.utils import parameters_to_vector

import nnunet_dvcl.trainers as trainers
from nnunet_dvcl.networks import full_resolution, unwrap
from nnunet_dvcl.trainers.base import Host, Term, TwoDecoders
from nnunet_dvcl.voxels.cutmix import CutMix

ON_HOSTS = [t for t in (getattr(trainers, name) for name in trainers.__all__) if issubclass(t, Host)]
FROM_THE_START = {"contrastive_start": 0.0, "consistency_start": 0.0, "confidence": 0.4}
TAUGHT = [t for t in ON_HOSTS if not issubclass(t, TwoDecoders)]  # on both hosts
every_method = pytest.mark.parametrize("trainer_class", ON_HOSTS)
both_hosts = pytest.mark.parametrize("host", ["native", "cps"])


@both_hosts
@every_method
def test_the_contrast_alone_moves_students_and_heads_and_nothing_that_teaches(start, monkeypatch, trainer_class, host):
    trainer = start(trainer_class, "2d_tiny", host=host, **FROM_THE_START)
    monkeypatch.setattr(trainer, "supervised_terms", lambda step: {"supervised_A": Term(torch.zeros(()), 1.0)})
    monkeypatch.setattr(trainer, "ssl_terms", lambda step: {"contrast": trainer.contrast_term(step)})
    monkeypatch.setattr(trainer, "after_step", lambda: None)
    modules = {"A": trainer.network, **trainer.companions}
    before = {name: parameters_to_vector(module.parameters()).clone() for name, module in modules.items()}
    averages = {key: value.clone() for key, value in trainer.memory.state_dict().items() if key.startswith("teacher")}
    assert bool(averages) == trainer.has_teacher
    trainer.train_step(next(trainer.dataloader_train))
    moved = {name for name, m in modules.items() if not torch.equal(parameters_to_vector(m.parameters()), before[name])}
    assert moved == trainer.reaches["contrast"].modules
    for key, value in averages.items():
        assert torch.equal(trainer.memory.state_dict()[key], value), key
    assert all(p.grad is None for p in trainer.memory.parameters())


@both_hosts
@pytest.mark.parametrize("trainer_class", TAUGHT)
def test_a_teacher_sees_all_weak_views_as_they_are(start, trainer_class, host):
    """Logits, features and labels are those of the teacher: the average, the network itself, or the other one."""
    trainer = start(trainer_class, "2d_tiny", host=host, views="weak_strong", cutmix_probability=0.0)
    if trainer.has_teacher:
        for parameter in trainer.memory["teacher"].parameters():
            parameter.data.mul_(1.1)
    step = noise_step(trainer)
    weak = step.image.chunk(2, dim=1)[0]
    networks = {"teacher": trainer.memory["teacher"] if trainer.has_teacher else None, **trainer.students()}
    for name in trainer.student_names:
        network, seen = networks[trainer.teacher_of(name)], []
        layer = unwrap(network).decoder.seg_layers[-1]
        hook = layer.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            logits = full_resolution(network(weak))
        hook.remove()
        assert torch.equal(step.taught_logits[name], logits)
        assert torch.equal(step.taught_features[name], seen[0])
        labels, predicted = step.pseudo_labels[name], trainer.labels.predicted(logits[2:])
        assert torch.equal(labels, predicted.where(labels >= 0, -1))


def test_boxes_move_all_that_a_teacher_says(start, monkeypatch):
    from nnunet_dvcl.trainers.base import pseudo_labels

    trainer = start(trainers.nnUNetTrainerU2PL, "2d_tiny", cutmix_probability=0.0)
    torch.manual_seed(0)
    plain = noise_step(trainer)
    trainer.config = trainer.config.model_copy(update={"cutmix_probability": 1.0})
    box = torch.zeros(2, 16, 16, dtype=torch.bool)
    box[0, :, :5] = True
    monkeypatch.setattr(pseudo_labels, "draw_cutmix", lambda *args: CutMix(box, torch.tensor([1, 0])))
    mixed = noise_step(trainer)
    for kind in ("taught_logits", "taught_features"):
        before, after = getattr(plain, kind)["A"], getattr(mixed, kind)["A"]
        assert torch.equal(after[[0, 1, 3]], before[[0, 1, 3]])
        assert torch.equal(after[2, :, :, :5], before[3, :, :, :5])
        assert torch.equal(after[2, :, :, 5:], before[2, :, :, 5:])


def test_the_head_is_averaged_with_the_teacher(start):
    trainer = start(trainers.nnUNetTrainerU2PL, "2d_tiny", teacher_decay=0.5)
    for _ in range(3):
        before = parameters_to_vector(trainer.memory["teacher_head"].parameters()).clone()
        trainer.train_step(next(trainer.dataloader_train))
        head = parameters_to_vector(trainer.companions["head_A"].parameters()).detach()
        share = min(0.5, 1 - 1 / trainer.iteration)
        averaged = parameters_to_vector(trainer.memory["teacher_head"].parameters())
        torch.testing.assert_close(averaged, share * before + (1 - share) * head)


@every_method
def test_hosts_have_their_networks_and_no_others(start, tmp_path, trainer_class):
    for host in ("native", "cps"):
        trainer = start(trainer_class, "2d_tiny", host=host)
        trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
        checkpoint = torch.load(tmp_path / "checkpoint.pth", weights_only=False)
        assert list(trainer.saved_networks(checkpoint)) == list(trainer.networks())
        assert ("B" in trainer.companions) == (host == "cps" or trainer_class not in TAUGHT)
        assert ("teacher" in trainer.memory) == trainer.has_teacher
        assert not (trainer.has_teacher and host == "cps")
