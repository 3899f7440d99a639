"""Two ranks in a whole training: what is divided, what stays equal, who writes, and what a checkpoint restores."""

import math
import os
from pathlib import Path
from unittest import mock

import pytest
import ranks
import torch
from jobs import UNEVEN, given
from small_values import SMALL

from nnunet_dvcl import distributed


@pytest.fixture
def trained(results):
    return [rank["whole"] for rank in results.two]


@pytest.fixture
def fold(results) -> Path:
    return results.folder / "Dataset901_Tiny/nnUNetTrainerDVCL__nnUNetPlans__2d_tiny/fold_all"


def _equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def test_the_batches_are_divided(trained):
    assert [rank["batch_sizes"] for rank in trained] == [(1, 2), (1, 1)]
    for stream, parts in (("patches", (4, 4)), ("unlabeled_patches", (2, 1))):
        assert tuple(len(rank[stream]) for rank in trained) == parts


def test_each_rank_draws_patches_of_its_own(trained):
    first, second = (rank["patches"] for rank in trained)
    assert not any(torch.equal(a, b) for a in first for b in second)
    assert not torch.equal(*(rank["unlabeled_patches"][0] for rank in trained))


@pytest.mark.parametrize("part", ["weights", "memory", "optimizer"])
def test_training_leaves_the_ranks_equal(trained, part):
    assert _equal(trained[0][part], trained[1][part])


def test_a_seeded_training_repeats(results):
    for rank in results.two:
        assert torch.equal(rank["seeded"]["patches"], rank["seeded, again"]["patches"])
        assert _equal(rank["seeded"]["weights"], rank["seeded, again"]["weights"])


def test_unseeded_ranks_start_alike_and_draw_differently(results):
    first, second = (rank["unseeded"] for rank in results.two)
    assert _equal(first["weights"], second["weights"])
    assert not torch.equal(first["drawn"], second["drawn"])


def test_logged_values_are_those_of_all_ranks(trained):
    first, second = (rank["logged"] for rank in trained)
    names = [name for name in first if name.startswith("ssl/") and not name.startswith("ssl/val_")]
    assert {"ssl/cps", "ssl/dvcl", "ssl/unreliable_A", "ssl/total"} <= set(names)
    for name in names:
        assert len(first[name]) == 2
        assert first[name] == pytest.approx(second[name], nan_ok=True), name
    assert any(not math.isnan(value) for value in first["ssl/val_neighbors_same"])


def test_rank_0_alone_writes(fold):
    for name in ("checkpoint_final.pth", "checkpoint_best.pth", "progress.png", "progress_ssl.png", "debug.json"):
        assert (fold / name).stat().st_size > 0
    assert not list(fold.glob("*.partial"))
    text = "".join(log.read_text() for log in fold.glob("training_log_*.txt"))
    assert text.count(": Epoch 1") == 1
    assert text.count("ssl supervised_A") == 2


@pytest.mark.parametrize("part", ["weights", "memory", "optimizer"])
def test_every_rank_restores_everything(trained, part):
    for rank in trained:
        assert _equal(rank["resumed"][part], trained[0][part])
        assert (rank["resumed"]["epoch"], rank["resumed"]["iteration"]) == (2, 4)


def test_resumed_ranks_draw_differently(trained):
    first, second = (rank["drawn_after_resuming"] for rank in trained)
    assert all(first[library] != second[library] for library in ("python", "numpy", "torch"))


def test_one_gpu_goes_on_from_a_checkpoint_of_two(results, fold, tiny_dataset, trained):
    with mock.patch.dict(os.environ, {"nnUNet_results": str(results.folder)}):
        trainer = ranks.build(**given(tiny_dataset, "DVCL", **SMALL | UNEVEN))
        trainer.load_checkpoint(str(fold / "checkpoint_final.pth"))
    state = ranks.state(trainer)
    assert all(_equal(state[part], trained[0][part]) for part in ("weights", "memory", "optimizer"))


def test_a_batch_for_fewer_ranks_is_refused_with_its_sizes(results):
    for rank in results.two:
        assert rank["too small"].startswith("A step has 2 labeled and 1 unlabeled patches, too few for 2 GPUs")
        assert rank["uneven"].startswith("A step has 3 unlabeled patches, expected a multiple of 2, the number of GPUs")


def test_a_gpu_is_that_of_the_process_and_not_that_of_the_global_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    device = distributed.own_device(torch.device("cuda"))
    assert (device.type, device.index) == ("cuda", 1)
    assert distributed.own_device(torch.device("cpu")) == torch.device("cpu")
    wrapped = []
    monkeypatch.setattr(distributed, "DistributedDataParallel", lambda module, device_ids: wrapped.append(device_ids))
    distributed.wrap(torch.nn.Linear(1, 1), device)
    distributed.wrap(torch.nn.Linear(1, 1), torch.device("cpu"))
    assert wrapped == [[1], None]


def test_a_first_stage_divides_the_unlabeled_cases(results):
    """No rank goes on before all are predicted."""
    assert [rank["first stage"]["predicted"] for rank in results.two] == [["scan_0", "scan_2"], ["scan_1"]]
    for rank in results.two:
        assert rank["first stage"]["there"] == ["scan_0", "scan_1", "scan_2"]
