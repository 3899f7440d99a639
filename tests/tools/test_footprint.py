"""The memory of a training, estimated before it begins."""

import gc
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys

import pytest
import torch
from examples import example_of_the_docs
from small_values import SMALL

from nnunet_dvcl.cli import main
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools import footprint
from nnunet_dvcl.tools.footprint import Footprint, estimate, peak_bytes, small_patch_sizes
from nnunet_dvcl.trainers import nnUNetTrainerDVCL


def _with_patch(tiny, configuration: str, patch_size: list[int]) -> None:
    plans = tiny.plans
    plans["configurations"][configuration] |= {"patch_size": patch_size, "ssl": SMALL}
    tiny.write_plans(plans)


@pytest.mark.parametrize("label_mode", ["labels", "regions + ignore"])
@pytest.mark.parametrize(("configuration", "patch_size"), [("3d_tiny", [32, 32, 24]), ("2d_tiny", [64, 48])])
def test_the_estimate_is_close_to_what_a_step_takes(tiny_dataset, start, configuration, patch_size):
    _with_patch(tiny_dataset, configuration, patch_size)
    estimated = estimate(tiny_dataset.name, configuration, "nnUNetPlans", "nnUNetTrainerDVCL")
    trainer = start(nnUNetTrainerDVCL, configuration)
    batch = next(trainer.dataloader_train)
    for _ in range(2):
        trainer.train_step(batch)
    assert estimated.step == pytest.approx(peak_bytes(lambda: trainer.train_step(batch)), rel=0.15)


def test_held_are_weights_gradients_momentum_and_memories(tiny_dataset, start):
    _with_patch(tiny_dataset, "2d_tiny", [16, 16])
    estimated = estimate(tiny_dataset.name, "2d_tiny", "nnUNetPlans", "nnUNetTrainerDVCL")
    trainer = start(nnUNetTrainerDVCL, "2d_tiny")
    parameters = sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"])
    memories = sum(b.numel() * b.element_size() for b in trainer.memory.buffers())
    unweighed = sum(p.numel() for n, p in trainer.network.named_parameters() if "seg_layers.0" in n)
    # layers that deep supervision does not weigh get no momentum
    assert 3 * 4 * parameters + memories - estimated.held in (0, 2 * 4 * unweighed)
    assert estimated.total == estimated.held + estimated.step
    assert Footprint(10, 6, 8).mixed_precision == Footprint(10, 8, 6).mixed_precision == 14


def test_each_peak_goes_on_in_its_own_line(tiny_dataset, monkeypatch):
    """On small patches the loss takes more, on the plan's patch the update."""
    _with_patch(tiny_dataset, "3d_tiny", [32, 32, 24])

    def measure(trainer_class, plans, configuration, dataset_json, after_step):
        voxels = math.prod(plans["configurations"][configuration]["patch_size"])
        return Footprint(5, 10_000 + voxels, 3 * voxels)

    monkeypatch.setattr(footprint, "measure", measure)
    estimated = estimate(tiny_dataset.name, "3d_tiny", "nnUNetPlans", "nnUNetTrainerDVCL")
    assert estimated == Footprint(5, 10_000 + 24_576, 3 * 24_576)
    assert estimated.step == 3 * 24_576


@pytest.mark.parametrize("sequential_twins", [False, True])
def test_memory_does_not_grow_with_training(start, sequential_twins):
    """From the steps that fill the bank and the queue on."""
    trainer = start(nnUNetTrainerDVCL, "2d_tiny", sequential_twins=sequential_twins, num_iterations_per_epoch=1000)
    batch = next(trainer.dataloader_train)

    def measure(steps: int) -> tuple[int, int]:
        for _ in range(steps):
            trainer.train_step(batch)
        gc.collect()
        held = sum(x.numel() * x.element_size() for x in gc.get_objects() if isinstance(x, torch.Tensor))
        # on a CPU the search for neighbors takes more or less memory, as the features are
        return held, statistics.median(peak_bytes(lambda: trainer.train_step(batch)) for _ in range(5))

    held, peak = measure(8)
    assert trainer.memory["queue"].count == trainer.memory["queue"].capacity
    held_later, peak_later = measure(12)
    assert held_later == held
    assert peak_later <= 1.05 * peak


def test_sequential_twins_need_less(tiny_dataset):
    _with_patch(tiny_dataset, "3d_tiny", [32, 32, 24])
    arguments = (tiny_dataset.name, "3d_tiny", "nnUNetPlans", "nnUNetTrainerCPS")
    assert estimate(*arguments, sequential_twins=True).step < 0.75 * estimate(*arguments).step


def test_a_small_plan_is_measured_itself():
    strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    assert small_patch_sizes([128, 128, 64], strides) == ([16, 16, 8], [16, 16, 16])
    assert small_patch_sizes([8, 8, 8], strides) == ([8, 8, 8], [8, 8, 8])
    assert small_patch_sizes([128, 128, 64], [*strides, [2, 2, 2]]) == ([16, 16, 16], [32, 32, 16])
    deep = [[1, 1, 1]] + 5 * [[2, 2, 2]]
    assert small_patch_sizes([128, 128, 128], deep) == ([64, 32, 32], [64, 64, 32])


def test_data_that_are_not_preprocessed_are_named(tiny_dataset):
    _with_patch(tiny_dataset, "2d_tiny", [16, 16])
    shutil.rmtree(tiny_dataset.preprocessed / "nnUNetPlans_2d")
    with pytest.raises(UserError, match=r"not preprocessed for 2d_tiny: run nnUNetv2_preprocess .*-c 2d_tiny"):
        estimate(tiny_dataset.name, "2d_tiny", "nnUNetPlans", "nnUNetTrainerDVCL")


def test_nothing_is_left_behind_and_the_table_is_told(tiny_dataset, capsys):
    _with_patch(tiny_dataset, "2d_tiny", [16, 16])
    before, environment = sorted(tiny_dataset.root.rglob("*")), dict(os.environ)
    assert main(["memory", "-d", "901", "-c", "2d_tiny"]) == 0
    assert sorted(tiny_dataset.root.rglob("*")) == before
    assert dict(os.environ) == environment
    assert [line[:29] for line in capsys.readouterr().out.splitlines()] == [
        "nnUNetTrainerDVCL, 2d_tiny, G",
        " " * 29,
        "as configured".ljust(29),
        "with ssl.sequential_twins=tru",
        "A CPU trains in float32. On a",
    ]


def test_the_profiler_says_nothing():
    """In a process of its own: it speaks once."""
    code = "import torch; from nnunet_dvcl.tools.footprint import peak_bytes; print(peak_bytes(lambda: torch.ones(9)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (int(said.stdout.splitlines()[-1]) > 0, said.stderr) == (True, "")


def test_it_shows_how_far_it_is(tiny_dataset, capsys, monkeypatch):
    """On a GPU's plans it takes minutes."""
    _with_patch(tiny_dataset, "2d_tiny", [64, 64])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["memory", "-d", "901", "-c", "2d_tiny"]) == 0
    err = capsys.readouterr().err
    assert re.findall(r"Steps on small patches: .*?(\d+/\d+)", err)[-1] == "12/12"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("901", "4d", "nnUNetPlans", "nnUNetTrainerDVCL"), "4d"),
        (("901", "2d_tiny", "nnUNetPlans", "nnUNetTrainerX"), "nnUNetTrainerX"),
        (("901", "2d_tiny", "Mine", "nnUNetTrainerDVCL"), "Mine.json"),
    ],
)
def test_what_does_not_exist_is_named(tiny_dataset, arguments, named):
    with pytest.raises(UserError, match=named):
        estimate(*arguments)


def test_the_supervised_trainer_has_a_footprint_too(tiny_dataset, capsys):
    _with_patch(tiny_dataset, "2d_tiny", [16, 16])
    assert main(["memory", "-d", "901", "-c", "2d_tiny", "-tr", "nnUNetTrainerSupervised"]) == 0
    assert "sequential_twins" not in capsys.readouterr().out
    assert json.loads((tiny_dataset.preprocessed / "nnUNetPlans.json").read_text()) == tiny_dataset.plans


@pytest.mark.parametrize(("configuration", "patch_size"), [("2d_tiny", [16, 16]), ("3d_tiny", [16, 16, 16])])
def test_a_trainer_without_deep_supervision(tiny_dataset, configuration, patch_size):
    _with_patch(tiny_dataset, configuration, patch_size)
    assert estimate(tiny_dataset.name, configuration, "nnUNetPlans", "nnUNetTrainerDVCL_Paper").step > 0


def test_twins_with_views_of_their_own(tiny_dataset):
    arguments = (tiny_dataset.name, "2d_tiny", "nnUNetPlans", "nnUNetTrainerCPS_SameView")
    assert estimate(*arguments, independent_intensities=True).step >= estimate(*arguments).step > 0


@pytest.mark.parametrize("label_mode", ["labels", "regions + ignore"])
def test_a_head_and_an_adversary_count(tiny_dataset, label_mode):
    """And signed distances, which the labeled batches bring."""
    _with_patch(tiny_dataset, "2d_tiny", [16, 16])
    sassnet, dtc, alone = (
        estimate(tiny_dataset.name, "2d_tiny", "nnUNetPlans", f"nnUNetTrainer{name}")
        for name in ("SASSNet", "DTC", "Supervised")
    )
    assert sassnet.held > dtc.held > alone.held
    assert dtc.step > alone.step


def test_a_teacher_counts(tiny_dataset, monkeypatch):
    """The mean teacher of the docs, which has two views, and network A twice: the second time without gradients."""
    with monkeypatch.context() as patch:
        patch.setattr(footprint, "find_trainer_class", example_of_the_docs)
        taught = estimate(tiny_dataset.name, "2d_tiny", "nnUNetPlans", "nnUNetTrainerMeanTeacher")
    alone = estimate(tiny_dataset.name, "2d_tiny", "nnUNetPlans", "nnUNetTrainerSupervised")
    # weights, gradients and momentum of A
    assert taught.held == pytest.approx(alone.held * 4 / 3, rel=0.02)


def test_the_peak_counts_what_is_alive_at_once():
    def call():
        torch.zeros(1000)
        return torch.zeros(500), torch.zeros(700)

    assert peak_bytes(call) == 4 * 1200
