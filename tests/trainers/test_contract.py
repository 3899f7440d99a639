"""The contract over every trainer x {2d, 3d} x label modes x deep supervision: a new trainer is in by being listed."""

import copy
import itertools

import pytest
import torch
from contract import SHORT, check_contract
from examples import example_of_the_docs
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)

import nnunet_dvcl.trainers as trainers
from nnunet_dvcl.trainers import (
    nnUNetTrainerCPS,
    nnUNetTrainerDVCL,
    nnUNetTrainerMT_WeakStrong,
    nnUNetTrainerSupervised,
)
from nnunet_dvcl.trainers.base import Host

TRAINERS = [name for name in trainers.__all__ if name != "nnUNetTrainerSSL"]
PATCHES = {"2d": [16, 16], "3d": [8, 8, 8]}


@pytest.fixture
def builder(with_scans, label_mode, tmp_path, monkeypatch):
    """``builder(trainer_class, dimension, **ssl)``: builds trainers on the CPU, on plans with four tiny stages."""
    tiny = with_scans(label_mode)
    for name, value in {**tiny.env, "nnUNet_results": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)

    def make(trainer_class: type, dimension: str, **ssl):
        plans = tiny.plans
        dim = len(PATCHES[dimension])
        configuration = plans["configurations"][f"{dimension}_tiny"]
        configuration |= {"patch_size": PATCHES[dimension], "ssl": SHORT | ssl}
        configuration["architecture"]["arch_kwargs"] |= {
            "n_stages": 4,
            "features_per_stage": [4, 4, 8, 8],
            "kernel_sizes": [[3] * dim] * 4,
            "strides": [[1] * dim, [2] * dim, [2] * dim, [1] * dim],
            "n_conv_per_stage": [1] * 4,
            "n_conv_per_stage_decoder": [1] * 3,
        }

        def build(continue_training: bool = False):
            own = copy.deepcopy(plans) | {"continue_training": continue_training}
            return trainer_class(own, f"{dimension}_tiny", "all", tiny.dataset_json, torch.device("cpu"))

        return build

    return make


def without_deep_supervision(trainer_class: type) -> type:
    """As a user combines a trainer of ours with nnU-Net's variant."""
    return type(f"{trainer_class.__name__}_noDS", (trainer_class, nnUNetTrainerNoDeepSupervision), {})


MODES = ["labels", "ignore", "regions", "regions + ignore"]
CELLS = list(itertools.product(PATCHES, MODES, [True, False]))
# in 8 of the 16 cells every pair of values meets: each label mode in both dimensions, each with either supervision
PAIRWISE = [
    (dimension, label_mode, deep_supervision)
    for place, (dimension, label_mode, deep_supervision) in enumerate(CELLS)
    if (list(PATCHES).index(dimension) + place // 2 + deep_supervision) % 2
]
IN_FULL = ("nnUNetTrainerCPS", "nnUNetTrainerDVCL")
PAPERS_OWN = (nnUNetTrainerSupervised, nnUNetTrainerCPS, nnUNetTrainerMT_WeakStrong)
OTHER_METHODS = [name for name in TRAINERS if not issubclass(getattr(trainers, name), PAPERS_OWN)]
VARIANTS = [
    name
    for name in TRAINERS
    if name.endswith("_SameView") or (name.startswith("nnUNetTrainerDVCL_") and "Paper" not in name)
]


def _two_cells(place: int) -> list[tuple[str, str, bool]]:
    """One in 2d and one in 3d, which share no value: one has regions, one an ignore label, one deep supervision."""
    mode, deep_supervision = place % 4, place // 4 % 2 == 0
    return [("2d", MODES[mode], deep_supervision), ("3d", MODES[3 - mode], not deep_supervision)]


def _cells(name: str) -> list[tuple[str, str, bool]]:
    """All or half of them, and two for other methods and for those that change one thing of a trainer with all."""
    for group in (OTHER_METHODS, VARIANTS):
        if name in group:
            return _two_cells(group.index(name))
    return CELLS if name in IN_FULL else PAIRWISE


OF_OTHER_METHODS, OF_VARIANTS = (
    [cell for name in group for cell in _cells(name)] for group in (OTHER_METHODS, VARIANTS)
)


@pytest.mark.parametrize(
    "cells",
    [PAIRWISE, OF_OTHER_METHODS, OF_VARIANTS],
    ids=["one trainer", "all other methods", "all variants"],
)
def test_every_pair_of_values_is_in_some_cell(cells):
    for first, second in itertools.combinations(range(3), 2):
        assert {(cell[first], cell[second]) for cell in cells} == {(cell[first], cell[second]) for cell in CELLS}


@pytest.mark.parametrize(
    ("name", "dimension", "label_mode", "deep_supervision"),
    [(name, *cell) for name in TRAINERS for cell in _cells(name)],
)
def test_contract(builder, name, dimension, deep_supervision):
    trainer_class = getattr(trainers, name)
    check_contract(builder(trainer_class if deep_supervision else without_deep_supervision(trainer_class), dimension))


@pytest.mark.parametrize("label_mode", ["labels"])
@pytest.mark.parametrize("name", ["nnUNetTrainerSupervised", "nnUNetTrainerDVCL"])
def test_with_the_other_optimizer(builder, name):
    check_contract(builder(getattr(trainers, name), "2d", optimizer="adamw", initial_lr=0.005))


@pytest.mark.parametrize("label_mode", ["labels", "regions + ignore"])
@pytest.mark.parametrize("name", [name for name in TRAINERS if issubclass(getattr(trainers, name), Host)])
def test_on_the_other_host(builder, name, label_mode):
    """Two networks, which have no teacher beside each other."""
    trainer = check_contract(builder(getattr(trainers, name), "2d", host="cps"))
    assert list(trainer.networks()) == ["A", "B"]


@pytest.mark.parametrize("label_mode", ["labels", "regions + ignore"])
@pytest.mark.parametrize("name", ["nnUNetTrainerMeanTeacher", "nnUNetTrainerCopyPaste"])
def test_the_examples_of_a_method_in_the_docs_hold_it(builder, name):
    check_contract(builder(example_of_the_docs(name), "2d"))


# ---------------------------------------------------------------- the contract itself


class ForgetsItsQueue(nnUNetTrainerDVCL):
    def load_ssl_state(self, state):
        state.memory.update({key: value * 0 for key, value in state.memory.items() if key.startswith("queue")})
        super().load_ssl_state(state)


class ForgetsItsProgress(nnUNetTrainerDVCL):
    def load_ssl_state(self, state):
        super().load_ssl_state(state)
        self.iteration = 0


class DoesNotTrainB(nnUNetTrainerDVCL):
    def initialize(self):
        super().initialize()
        del self.optimizer.param_groups[1]


class DoesNotReachItsHeads(nnUNetTrainerDVCL):
    def project(self, name, volume, index):
        return super().project(name, volume, index).detach()


class ChangesInValidation(nnUNetTrainerDVCL):
    def epoch_statistics(self):
        self.memory["bank"].cursor += 1
        return super().epoch_statistics()


class LearnsNothing(nnUNetTrainerDVCL):
    def configure_optimizers(self):
        optimizer, scheduler = super().configure_optimizers()
        scheduler.initial_lr = 0.0
        return optimizer, scheduler


class SavesAnotherNetwork(nnUNetTrainerDVCL):
    def save_checkpoint(self, filename):
        trained, self.network = self.network, self.companions["B"]
        super().save_checkpoint(filename)
        self.network = trained


@pytest.mark.parametrize("label_mode", ["labels"])
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (ForgetsItsQueue, r"differ: \['memory\.queue"),
        (ForgetsItsProgress, r"differ: \['iteration'\]"),
        (DoesNotTrainB, r"not in the optimizer: \['B\."),
        (DoesNotReachItsHeads, r"no gradient reached \['head_A.*'head_B"),
        (ChangesInValidation, r"differ: \['memory\.bank\.cursor'\]"),
        (LearnsNothing, "supervised_A does not fall"),
        (SavesAnotherNetwork, "logits"),
    ],
)
def test_a_broken_trainer_does_not_pass(builder, broken, message):
    with pytest.raises(AssertionError, match=message):
        check_contract(builder(broken, "2d"))
