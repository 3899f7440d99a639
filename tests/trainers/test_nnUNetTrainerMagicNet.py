"""Magic cubes: what is run on mixed patches and on cubes, what each learns, and what pseudo-labels are made of."""

import math

import pytest
import torch
from noise import noise_step

from nnunet_dvcl.losses import blend_cubes
from nnunet_dvcl.networks import full_resolution
from nnunet_dvcl.trainers import nnUNetTrainerMagicNet

MODES = ["labels", "ignore", "regions", "regions + ignore"]


def naive_dice_loss(logits: torch.Tensor, classes: torch.Tensor, known: torch.Tensor, regions: bool) -> float:
    """1 - the mean Dice of the labels beside background, or of the two regions, over all known voxels."""
    p = logits.detach().double()
    p = p.sigmoid() if regions else p.softmax(1)[:, 1:]
    dice = []
    for f in range(2):
        q, y = p[:, f][known], (classes >= f + 1 if regions else classes == f + 1)[known]
        dice.append((2 * float(q[y].sum()) + 1e-5) / (float(q.sum()) + int(y.sum()) + 1e-5))
    return 1 - sum(dice) / 2


@pytest.mark.parametrize("ignored_as_unlabeled", [True, False])
@pytest.mark.parametrize("label_mode", MODES)
def test_every_term_is_that_of_the_loops(start, monkeypatch, label_mode, ignored_as_unlabeled):
    ssl = {"location_weight": 0.3, "consistency_weight": 0.7, "ignored_as_unlabeled": ignored_as_unlabeled}
    trainer = start(nnUNetTrainerMagicNet, "2d_tiny", **ssl)
    step, regions = noise_step(trainer, ignored_rows=8 if "ignore" in label_mode else 0), "regions" in label_mode
    labels = torch.randint(0, 3, step.unlabeled.shape)
    monkeypatch.setattr(trainer, "pseudo_labels", lambda step: labels)
    terms = trainer.ssl_terms(step)
    assert terms.keys() == trainer.reaches.keys()

    known = step.target >= 0
    for name in ("recovered", "local"):
        expected = naive_dice_loss(step.kept[name][:2], step.target, known, regions)
        assert terms[name].value.item() == pytest.approx(expected, rel=1e-4)
        assert terms[name].weight == 1, "as nnU-Net's CE and Dice"
    followed = step.unlabeled_patches(step.kept["recovered"])
    assert len(followed) == (4 if "ignore" in label_mode and ignored_as_unlabeled else 2)
    expected = naive_dice_loss(followed, labels, step.unlabeled, regions)
    assert terms["consistency"].value.item() == pytest.approx(expected, rel=1e-4)
    assert terms["consistency"].weight == pytest.approx(4 * 0.7 * step.rampup(1.0))

    number = len(trainer.grid)
    rows = step.kept["location"].detach().double().tolist()
    assert len(rows) == 4 * number
    answers = [math.log(sum(map(math.exp, row))) - row[i % number] for i, row in enumerate(rows)]
    assert terms["location"].value.item() == pytest.approx(sum(answers) / len(answers), rel=1e-4)
    assert terms["location"].weight == pytest.approx(4 * 0.3)


@pytest.mark.parametrize("configuration", ["2d_tiny", "3d_tiny"])
def test_the_network_sees_mixed_patches_and_single_cubes(start, monkeypatch, configuration):
    """The idea: a voxel's answer comes back to its place, and was given beside other cubes, or beside none."""
    trainer = start(nnUNetTrainerMagicNet, configuration)
    step = noise_step(trainer)
    seen = []

    def forward(name, image):
        seen.append(image)
        return image.repeat_interleave(3, 1) * torch.arange(3.0).view(-1, *[1] * (image.ndim - 2))

    monkeypatch.setattr(trainer, "forward", forward)
    monkeypatch.setattr(trainer.tap, "pop", lambda: torch.zeros(4 * len(trainer.grid), trainer_width(trainer)))
    trainer.after_forward(step)
    expected = forward("A", step.image)
    assert torch.equal(step.kept["recovered"], expected)
    assert torch.equal(step.kept["local"], expected)
    mixed, cubes = seen[:2]
    assert mixed.shape == step.image.shape
    assert not torch.equal(mixed, step.image)
    for k, place in enumerate(trainer.grid.places):
        at = (slice(None), slice(None), *place)
        assert cubes.shape[2:] == trainer.grid.cube_size
        assert torch.equal(cubes.view(4, len(trainer.grid), *cubes.shape[1:])[:, k], step.image[at])
    sources = {
        tuple(int(torch.equal(mixed[b, 0][owned], step.image[a, 0][owned])) for a in range(4))
        for owned in (trainer.owners == k for k in range(len(trainer.grid)))
        for b in range(4)
    }
    assert all(sum(source) == 1 for source in sources)
    assert len(sources) > 1


def trainer_width(trainer) -> int:
    return trainer.companions["head_location"][0].in_features


def test_whoever_mixes_learns_something_else(start):
    """Answers for a mixed patch, put back, are not those for the patch."""
    trainer = start(nnUNetTrainerMagicNet, "2d_tiny")
    step = noise_step(trainer)
    for name in ("recovered", "local"):
        assert not torch.allclose(step.kept[name], step.logits["A"], atol=1e-3)
    image = step.image
    with torch.no_grad():
        cubes = full_resolution(trainer.network(trainer.grid.cut(image)))
    torch.testing.assert_close(step.kept["local"].detach(), trainer.grid.put_together(cubes))


@pytest.mark.parametrize("label_mode", MODES)
def test_pseudo_labels_are_blended_by_the_shares_of_classes(start, monkeypatch, label_mode):
    """Blending that is never reached, as in one of the released scripts, is found out."""
    trainer = start(nnUNetTrainerMagicNet, "2d_tiny")
    step = noise_step(trainer, ignored_rows=8 if "ignore" in label_mode else 0)
    memory, local = trainer.memory["class_shares"], step.unlabeled_patches(step.kept["local"])
    teacher = torch.randn_like(local)
    monkeypatch.setattr(trainer, "teach", lambda image: teacher)
    trainer.iteration = 50
    shares = torch.tensor([0.7, 0.2, 0.1])
    memory.shares.copy_(shares[:, None])
    step.kept["local"] = 3 * torch.randn_like(step.kept["local"])
    labels = trainer.pseudo_labels(step)
    local, own = step.unlabeled_patches(step.kept["local"]), trainer.labels.predicted(teacher)
    assert torch.equal(labels, trainer.labels.predicted(blend_cubes(teacher, local, own, shares)))
    changed = (labels != own) & step.unlabeled
    assert changed.any()
    assert step.statistics["blended"] == pytest.approx((changed.sum() / step.unlabeled.sum()).item())
    current = torch.stack([(labels[step.unlabeled] == c).float().mean() for c in range(3)])
    torch.testing.assert_close(memory.shares[:, 0], 0.95 * shares + 0.05 * current)

    step.progress = 0.001
    assert torch.equal(trainer.pseudo_labels(step), own), "not yet"


def test_a_cube_of_padding_has_no_place(start):
    trainer = start(nnUNetTrainerMagicNet, "2d_tiny")
    step = noise_step(trainer)
    number = len(trainer.grid)
    step.valid[1] = False
    value = trainer.ssl_terms(step)["location"].value
    (gradient,) = torch.autograd.grad(value, step.kept["location"])
    reached = gradient.abs().sum(1) > 0
    assert reached[: 3 * number].all()
    assert not reached[3 * number :].any()


def test_where_a_cube_was_is_learned(start):
    """From the images alone: they have corners of 0."""
    trainer = start(nnUNetTrainerMagicNet, "2d_tiny", location_weight=1.0, num_epochs=100)
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)
    outputs = []
    for _ in range(30):
        trainer.dataloader_unlabeled = iter([unlabeled])
        outputs.append(trainer.train_step(labeled))
    assert outputs[-1]["location"] < 0.8 * outputs[0]["location"]
    assert outputs[-1]["located"] > 1 / len(trainer.grid)
    assert all(output["consistency"] > 0 for output in outputs)


def test_the_head_is_not_deployed_and_the_teacher_can_be(start, tmp_path):
    trainer = start(nnUNetTrainerMagicNet, "2d_tiny")
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    checkpoint = torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    assert list(trainer.saved_networks(checkpoint)) == list(trainer.networks()) == ["A", "teacher"]
    assert list(checkpoint["ssl_state"]["companions"]) == ["head_location"]
