"""The jobs, done once by two ranks together and once by one, for all tests of this folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jobs
import pytest
import ranks
import torch


class Results(NamedTuple):
    """What the jobs returned; the whole trainings were not done by one rank."""

    two: list[dict[str, Any]]  # by rank
    one: dict[str, Any]
    folder: Path  # nnUNet_results of the two

    def __repr__(self) -> str:
        return "Results(...)"


@pytest.fixture(scope="session")
def results(tiny_originals, _cascade_original, made_once) -> Results:
    def make(folder: Path) -> None:
        torch.save(tuple(_compute(tiny_originals, _cascade_original, folder)), folder / "results.pth")

    return Results(*torch.load(made_once("ranks", make) / "results.pth", weights_only=False))


def _compute(tiny_originals, cascade_original, folder: Path) -> Results:
    tinies = {}
    for mode in ("labels", "regions", "ignore"):
        tinies[mode] = type(tiny_originals(mode))(folder / mode)
        shutil.copytree(tiny_originals(mode).root, tinies[mode].root)
        tinies[mode].results.mkdir(exist_ok=True)
    todo = {}
    for mode, tiny in tinies.items():
        with mock.patch.dict(os.environ, tiny.env):
            todo |= jobs.on_given_batches(mode, tiny)
    with mock.patch.dict(os.environ, tinies["labels"].env):
        one = ranks.do(todo)
        todo |= jobs.of_two_ranks_alone(tinies["labels"])
        lowres = "nnUNetPlans_3d_lowres_tiny"
        shutil.copytree(cascade_original.preprocessed / lowres, tinies["labels"].preprocessed / lowres)
        tinies["labels"].write_plans(cascade_original.plans)
        todo |= jobs.of_a_cascade(tinies["labels"])
        torch.save(todo, folder / "jobs.pth")
        # forks: torch and nnU-Net are imported already
        torch.multiprocessing.start_processes(ranks.start, (2, folder), nprocs=2, start_method="fork")
    two = [torch.load(folder / f"rank_{rank}.pth", weights_only=False) for rank in range(2)]
    return Results(two, one, tinies["labels"].results)
