"""A mean teacher that is followed where it is certain: which voxels, from how many runs, and with which dropout."""

import math

import pytest
import torch
from noise import noise_step

from nnunet_dvcl.networks import unwrap
from nnunet_dvcl.trainers import nnUNetTrainerUAMT

SMALL = {"monte_carlo_passes": 3, "dropout": 0.1}


def naive_certain(runs: list[torch.Tensor], unlabeled: torch.Tensor, share: float, regions: bool) -> list[list[bool]]:
    """Eq. 2 and 3 as loops: for each voxel (and region) whether the entropy of the mean prediction is below H."""
    squash = torch.sigmoid if regions else lambda x: x.softmax(1)
    of_runs = [squash(run.double()).movedim(1, -1).flatten(0, -2).tolist() for run in runs]
    certain = []
    for voxel, is_unlabeled in enumerate(unlabeled.flatten().tolist()):
        mean = [sum(run[voxel][c] for run in of_runs) / len(runs) for c in range(len(of_runs[0][voxel]))]
        decisions = [[m, 1 - m] for m in mean] if regions else [mean]
        entropies = [-sum(m * math.log(m) for m in decision) for decision in decisions]
        highest = math.log(len(decisions[0]))
        certain.append([is_unlabeled and e < share * highest for e in entropies])
    return certain


@pytest.mark.parametrize("progress", [0.0, 0.6])
@pytest.mark.parametrize("label_mode", ["labels", "ignore", "regions", "regions + ignore"])
def test_only_certain_voxels_are_followed(start, monkeypatch, label_mode, progress):
    """The idea: value and gradient are those of the voxels (and regions) that Eq. 2 and 3 choose."""
    trainer = start(nnUNetTrainerUAMT, "2d_tiny", **SMALL)
    step = noise_step(trainer, progress, ignored_rows=8 if "ignore" in label_mode else 0)
    logits = step.unlabeled_patches(step.logits["A"])
    runs = [1.5 * torch.randn_like(logits) for _ in range(4)]
    given = iter(runs)
    monkeypatch.setattr(trainer, "teach", lambda image: next(given))
    term = trainer.ssl_terms(step)["consistency"]
    # the first run is what the student follows, T more tell where
    target, regions = runs[0], "regions" in label_mode
    share = 0.75 + 0.25 * math.exp(-5 * (1 - progress) ** 2)
    assert trainer.certain_share(step) == pytest.approx(share)
    certain = naive_certain(runs[1:], step.unlabeled, share, regions)
    flat = [c for voxel in certain for c in voxel]
    assert 0.02 * len(flat) < sum(flat) < 0.7 * len(flat)

    squash = torch.sigmoid if regions else lambda x: x.softmax(1)
    p, q = (squash(x.detach().double()).movedim(1, -1).flatten(0, -2) for x in (logits, target))
    squares = (p - q).square() if regions else (p - q).square().sum(1, keepdim=True) / 2
    mask = torch.tensor(certain)
    assert term.value.item() == pytest.approx(squares[mask].mean().item(), rel=1e-4)
    found = step.statistics["certain"]
    assert found.item() == pytest.approx(sum(flat) / (sum(step.unlabeled.flatten().tolist()) * mask.shape[1]))

    (gradient,) = torch.autograd.grad(term.value, step.logits["A"])
    of_voxels = step.unlabeled_patches(gradient).movedim(1, -1).flatten(0, -2) != 0
    assert torch.equal(of_voxels, mask if regions else mask.expand_as(of_voxels))


def test_a_teacher_that_is_certain_of_nothing_is_not_followed(start, monkeypatch, capsys):
    trainer = start(nnUNetTrainerUAMT, "2d_tiny", **SMALL)
    monkeypatch.setattr(trainer, "teach", lambda image: torch.zeros(len(image), 3, 16, 16))
    output = trainer.train_step(next(trainer.dataloader_train))
    assert output["consistency"] == output["certain"] == 0
    trainer.on_train_epoch_end([output])
    assert (
        "WARNING: ssl/consistency was 0 for the whole epoch: the teacher was certain of no" in capsys.readouterr().out
    )


@pytest.mark.parametrize("passes", [1, 4])
def test_each_run_has_noise_and_dropped_channels_of_its_own(start, monkeypatch, passes):
    trainer = start(nnUNetTrainerUAMT, "2d_tiny", monte_carlo_passes=passes)
    images, outputs, teach = [], [], trainer.teach

    def spy(image):
        images.append(image)
        outputs.append(teach(image))
        return outputs[-1]

    monkeypatch.setattr(trainer, "teach", spy)
    trainer.train_step(next(trainer.dataloader_train))
    assert len(images) == passes + 1
    for several in (images, outputs):
        assert not any(torch.equal(several[0], other) for other in several[1:])


@pytest.mark.parametrize("configuration", ["2d_tiny", "3d_tiny"])
def test_both_networks_drop_channels_in_training_alone_and_keep_their_names(start, configuration):
    trainer = start(nnUNetTrainerUAMT, configuration)
    plain = trainer.build_vanilla_network(enable_deep_supervision=True)
    image = torch.randn(1, 1, *trainer.configuration_manager.patch_size)
    for network in (unwrap(trainer.network), trainer.memory["teacher"]):
        assert network.state_dict().keys() == plain.state_dict().keys()
        kept = []
        network.decoder.seg_layers[-1].register_forward_hook(lambda _, inputs, __, kept=kept: kept.append(inputs[0]))
        with torch.no_grad():
            for _ in range(20):
                network.train()(image)
            share = torch.stack([(x == 0).flatten(2).all(2).float().mean() for x in kept]).mean()
            assert 0.3 < share < 0.7, "of the channels before the last layer"
            runs = [network.eval()(image) for _ in range(2)]
        assert all(map(torch.equal, *((run if isinstance(run, list) else [run]) for run in runs)))
    with torch.no_grad():
        plain.load_state_dict(unwrap(trainer.network).state_dict())
        assert torch.equal(plain.eval()(image)[0], unwrap(trainer.network).eval()(image)[0])


def test_without_dropout_there_is_none(start):
    trainer = start(nnUNetTrainerUAMT, "2d_tiny", dropout=0.0)
    image = torch.randn(1, 1, 16, 16)
    assert torch.equal(trainer.teach(image), trainer.teach(image))
