"""The paper's protocol: what the preset writes, what the trainers fix, what they say where the two do not meet."""

import itertools
from pathlib import Path

import pytest
import torch

from nnunet_dvcl.cli import main
from nnunet_dvcl.trainers import nnUNetTrainerCPS_Paper, nnUNetTrainerDVCL_Paper
from nnunet_dvcl.trainers.nnUNetTrainerDVCL_Paper import PRESET, PaperProtocol

TRAINERS = [nnUNetTrainerCPS_Paper, nnUNetTrainerDVCL_Paper]


def log(trainer) -> str:
    return Path(trainer.log_file).read_text()


@pytest.fixture
def paper_configuration(tiny_dataset) -> str:
    assert main(["configure", "-d", "901", "-c", "3d_fullres", "--name", "3d_paper", "--preset", "paper"]) == 0
    return "3d_paper"


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_the_preset_and_the_trainer_are_the_protocol(paper_configuration, build_trainer, tiny_dataset, trainer_class):
    trainer = build_trainer(trainer_class, paper_configuration)
    trainer.configuration_manager.configuration.pop("ssl")  # what the fixture sets
    trainer.initialize()
    configuration = trainer.configuration_manager
    assert (configuration.patch_size, configuration.batch_size) == ([64, 128, 128], 2)
    assert trainer.unlabeled_batch_size == 2
    assert trainer.num_epochs * trainer.num_iterations_per_epoch == 20_000
    assert "WARNING" not in log(trainer)

    for network in trainer.students().values():
        convolutions = [stage[0].convs[0].conv for stage in network.encoder.stages]
        assert [c.out_channels for c in convolutions] == [16, 32, 64, 128, 256]
        assert [c.stride for c in convolutions] == [(1, 1, 1), *[(2, 2, 2)] * 4]
        assert not network.decoder.deep_supervision
        assert isinstance(network(torch.zeros(1, 1, 32, 32, 32)), torch.Tensor)
    assert trainer.loss.__class__.__name__ == "DC_and_CE_loss"


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_the_optimizer_of_both_networks(build_trainer, trainer_class):
    trainer = build_trainer(trainer_class)
    trainer.configuration_manager.configuration.pop("ssl")
    trainer.initialize()
    assert len(trainer.optimizer.param_groups) == 2
    for group in trainer.optimizer.param_groups:
        settings = {key: group[key] for key in ("momentum", "nesterov", "weight_decay", "lr")}
        assert settings == {"momentum": 0.9, "nesterov": False, "weight_decay": 2e-4, "lr": 0.05}
    trainer.lr_scheduler.step(40)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.05 * 0.5**0.9}


def test_half_the_learning_rate_and_twice_the_decay_of_twice_the_loss_are_the_papers_steps():
    def weights_after_steps(scale):
        weight = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([weight], 0.1 / scale, momentum=0.9, weight_decay=1e-4 * scale)
        for _ in range(20):
            optimizer.zero_grad()
            (scale * (weight - 0.3).pow(2).sum()).backward()
            optimizer.step()
        return weight.detach()

    torch.testing.assert_close(weights_after_steps(1), weights_after_steps(2))


def test_the_plans_still_win(build_trainer):
    trainer = build_trainer(nnUNetTrainerCPS_Paper, num_epochs=3, initial_lr=0.02, optimizer="adamw")
    trainer.initialize()
    assert (trainer.num_epochs, trainer.initial_lr) == (3, 0.02)
    assert isinstance(trainer.optimizer, torch.optim.AdamW)


def test_a_starts_from_kaiming_and_b_from_xavier(build_trainer):
    trainer = build_trainer(nnUNetTrainerCPS_Paper, seed=3)
    trainer.initialize()
    for name, network in trainer.students().items():
        weights = network.encoder.stages[-1][0].convs[0].conv.weight  # 8 -> 16 channels, 3 x 3 x 3
        variance = 2 / (8 * 27) if name == "A" else 2 / ((8 + 16) * 27)
        assert weights.var().item() == pytest.approx(variance, rel=0.1), name
    again = build_trainer(nnUNetTrainerCPS_Paper, seed=3)
    again.initialize()
    pairs = zip(trainer.companions["B"].parameters(), again.companions["B"].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_patch_is_turned_in_the_plane_and_flipped_and_nothing_else():
    shape = (1, 2, 3, 3)
    image = torch.arange(18.0).reshape(shape)
    transforms = PaperProtocol.get_training_transforms((2, 3, 3), (-3, 3), None, (0, 1, 2), False)
    possible = {
        tuple(torch.rot90(image, k, (2, 3)).flip([axis + 1 for axis in axes]).ravel().tolist())
        for k in range(4)
        for n in range(4)
        for axes in itertools.combinations(range(3), n)
    }
    seen = set()
    for _ in range(300):
        moved = transforms(image=image.clone(), segmentation=image.clone().to(torch.int16))
        assert torch.equal(moved["image"], moved["segmentation"].float())
        seen.add(tuple(moved["image"].ravel().tolist()))
    assert seen == possible


def test_a_patch_may_stay_as_it_is():
    transforms = PaperProtocol.get_training_transforms((2, 3, 3), None, None, None, False)
    image = torch.arange(18.0).reshape(1, 2, 3, 3)
    seen = {tuple(transforms(image=image.clone())["image"].ravel().tolist()) for _ in range(100)}
    assert seen == {tuple(torch.rot90(image, k, (2, 3)).ravel().tolist()) for k in range(4)}


def test_axes_of_different_size_are_not_exchanged():
    transforms = PaperProtocol.get_training_transforms((4, 2, 3), None, None, None, False)
    image = torch.rand(1, 4, 2, 3)
    moved = transforms(image=image.clone(), segmentation=torch.full((1, 4, 2, 3), -1, dtype=torch.int16))
    assert torch.equal(moved["image"], image)
    assert not moved["segmentation"].any(), "nnU-Net takes padding for background"


@pytest.mark.parametrize("configuration", ["3d_tiny", "2d_tiny"])
def test_patches_have_no_margin(start, configuration):
    trainer = start(nnUNetTrainerCPS_Paper, configuration)
    for loader in (trainer.dataloader_train, trainer.dataloader_unlabeled):
        assert list(loader.data_loader.patch_size)[-2:] == [16, 16]
    assert trainer.inference_allowed_mirroring_axes == ((0, 1, 2) if configuration == "3d_tiny" else (0, 1))


def test_each_network_may_see_intensities_of_its_own(start):
    """There are none, so both see the same; the views must be made all the same."""
    trainer = start(nnUNetTrainerCPS_Paper, independent_intensities=True)
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)
    views = trainer.views(trainer._begin_step(labeled, unlabeled))
    assert torch.equal(views["A"], views["B"])


def test_another_configuration_is_reported_with_the_command_that_makes_the_right_one(build_trainer, tiny_dataset):
    trainer = build_trainer(nnUNetTrainerDVCL_Paper)
    trainer.initialize()
    written = log(trainer)
    assert "patch_size: [16, 16, 16] here, [64, 128, 128] there" in written
    assert "features_per_stage: [4, 8, 16] here, [16, 32, 64, 128, 256] there" in written
    assert "batch_size" not in written.partition("WARNING")[2], "2, as in the paper"
    command = written.partition("To make that: nnunet_dvcl ")[2].splitlines()[0].split()
    assert main(command) == 0
    assert not PRESET.differences(tiny_dataset.managers("3d_paper")[1].configuration)


def test_plain_nnunet_builds_the_network(start, tmp_path):
    trainer = start(nnUNetTrainerDVCL_Paper)
    trainer.save_checkpoint(str(tmp_path / "checkpoint_final.pth"))
    checkpoint = torch.load(tmp_path / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"


def test_every_value_of_the_preset_is_on_the_page():
    page = (Path(__file__).parents[2] / "docs/explanation/paper-protocol.md").read_text()
    for key in PRESET.values:
        assert f"`{key.removeprefix('architecture.arch_kwargs.')}`" in page, key
