import math

import numpy as np
import pytest
import torch

from nnunet_dvcl.tools.footprint import peak_bytes
from nnunet_dvcl.trainers import nnUNetTrainerCPS, nnUNetTrainerCPS_SameView, nnUNetTrainerDHC, nnUNetTrainerDVCL


def _parameters(module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_the_twin_has_the_same_architecture_and_its_own_weights(build_trainer):
    trainer = build_trainer(nnUNetTrainerCPS)
    trainer.initialize()
    a, b = trainer.students().values()
    assert [p.shape for p in a.parameters()] == [p.shape for p in b.parameters()]
    assert not torch.equal(_parameters(a), _parameters(b))
    assert {id(p) for p in a.parameters()}.isdisjoint(id(p) for p in b.parameters())


@pytest.mark.parametrize(("seed", "same"), [(0, True), (None, False)])
def test_the_twins_seed(build_trainer, seed, same):
    twins = []
    for _ in range(2):
        trainer = build_trainer(nnUNetTrainerCPS, seed=seed)
        torch.manual_seed(9)  # the twin has its own seed, whatever the state of the global generator
        trainer.initialize()
        twins.append(_parameters(trainer.companions["B"]))
    assert torch.equal(*twins) == same


def test_both_networks_are_optimized_and_clipped_alone(start):
    trainer = start(nnUNetTrainerCPS)
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for s in trainer.students().values() for p in s.parameters()}
    for p in trainer.network.parameters():
        p.grad = torch.full_like(p, 1e3)
    for p in trainer.companions["B"].parameters():
        p.grad = torch.full_like(p, 1e-4)
    trainer._clip_gradients()
    norm_a = torch.stack([p.grad.norm() for p in trainer.network.parameters()]).norm()
    assert norm_a == pytest.approx(12, rel=1e-3)
    assert next(trainer.companions["B"].parameters()).grad.flatten()[0] == 1e-4


def test_the_total_is_supervised_plus_twice_the_weighted_consistency(start):
    """Eq. 1-3 with nnU-Net's Dice + CE, twice the paper's supervised loss."""
    trainer = start(nnUNetTrainerCPS_SameView, num_epochs=4, num_iterations_per_epoch=2, consistency_weight=0.1)
    for iteration in range(3):
        output = trainer.train_step(next(trainer.dataloader_train))
        ramp = math.exp(-5 * (1 - iteration / 8) ** 2)
        assert output["rampup"] == pytest.approx(ramp)
        expected = output["supervised_A"] + output["supervised_B"] + 2 * 0.1 * ramp * output["cps"]
        assert output["total"] == pytest.approx(expected, rel=1e-5)


def test_the_supervised_gradient_is_nnunets_own(start):
    """With the other terms off, network A is trained as nnU-Net would train it."""
    from nnunet_dvcl.trainers import nnUNetTrainerSupervised

    ours = start(nnUNetTrainerCPS_SameView, consistency_weight=0.0)
    stock = start(nnUNetTrainerSupervised)
    stock.network.load_state_dict(ours.network.state_dict())
    batch = next(ours.dataloader_train)
    ours.train_step(batch)
    stock.train_step(batch)
    torch.testing.assert_close(_parameters(ours.network), _parameters(stock.network), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerCPS, nnUNetTrainerDHC])
def test_networks_that_both_say_background_are_told_once_an_occurrence(start, capsys, trainer_class):
    trainer = start(trainer_class, "2d_tiny", num_epochs=9)
    trainer.logger.plot_progress_png = lambda folder: None  # takes longer than all else

    def told(agreement, dice):
        now = {"epoch_start_timestamps": 0.0, "train_losses": 0.0, "val_losses": 0.0, "ssl/agreement": agreement}
        for key, value in {**now, "mean_fg_dice": np.float64(dice), "dice_per_class_or_region": [dice]}.items():
            trainer._log(key, value)
        trainer.on_epoch_end()
        return "WARNING: Both networks say background" in capsys.readouterr().out

    epochs = [(0.99, 0.0), (1.0, 0.0), (0.99, 0.2), (0.9, 0.0), (0.99, math.nan), (1.0, 0.0), (1.0, 0.0)]
    assert [told(*epoch) for epoch in epochs] == [True, False, False, False, False, True, False]


def test_padding_only_gives_zero_and_a_reason(start, capsys):
    trainer = start(nnUNetTrainerCPS_SameView)
    unlabeled = next(trainer.dataloader_unlabeled)
    unlabeled["target"][:] = -1
    trainer.dataloader_unlabeled = iter([unlabeled] * 2)
    outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(2)]
    assert [output["cps"] for output in outputs] == [0, 0]
    trainer.on_train_epoch_end(outputs)
    assert "WARNING: ssl/cps was 0 for the whole epoch: every unlabeled patch was padding" in capsys.readouterr().out


@pytest.mark.parametrize("independent", [False, True])
def test_what_each_network_sees(start, independent):
    trainer = start(nnUNetTrainerCPS_SameView, "2d_tiny", independent_intensities=independent)
    seen = {}
    for name, network in trainer.students().items():
        network.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    differ = []
    for _ in range(4):
        output = trainer.train_step(next(trainer.dataloader_train))
        assert seen["A"].shape == seen["B"].shape == (4, 1, 16, 16)
        assert math.isfinite(output["total"])
        differ += [not torch.equal(a, b) for a, b in zip(seen["A"], seen["B"], strict=True)]
    assert any(differ[:2] + differ[4:6]) == independent, "labeled patches"
    assert any(differ) == independent
    assert next(trainer.dataloader_val)["data"].shape[1] == 1, "validation sees one view"


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerCPS, nnUNetTrainerDVCL])
@pytest.mark.parametrize("configuration", ["2d_tiny", "3d_tiny"])
def test_sequential_twins_are_trained_the_same(start, trainer_class, configuration):
    """Same values and same weights, to float tolerance: only what is held for the gradients differs."""
    trained = []
    for sequential in (False, True):
        trainer = start(trainer_class, configuration, sequential_twins=sequential, initial_lr=0.001)
        batch = next(trainer.dataloader_train)
        torch.manual_seed(1)
        outputs = [trainer.train_step(batch) for _ in range(2)]
        trained.append((outputs, [_parameters(network) for network in trainer.students().values()]))
    (outputs, joint), (outputs_sequential, sequential) = trained
    for one, other in zip(outputs, outputs_sequential, strict=True):
        assert {key for key in one if key not in other} == {key for key in one if "gradient_" in key}
        assert other == pytest.approx({key: one[key] for key in other}, rel=1e-4, nan_ok=True)
    torch.testing.assert_close(sequential, joint, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("trainer_class", "share"), [(nnUNetTrainerCPS, 0.75), (nnUNetTrainerDVCL, 0.8)])
def test_sequential_twins_keep_the_activations_of_one_network(start, trainer_class, share):
    def kept(**ssl) -> int:
        trainer = start(trainer_class, **ssl)
        batch = next(trainer.dataloader_train)
        trainer.train_step(batch)
        trainer.iteration = 0  # the first step of an epoch, which takes most
        return peak_bytes(lambda: trainer.train_step(batch))

    assert kept(sequential_twins=True) < share * kept()
