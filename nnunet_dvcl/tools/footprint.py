"""How much memory a training step needs, before the training: ``nnunet_dvcl memory``."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dvcl import trainers
from nnunet_dvcl.data.folders import check_configuration, find_plans_file
from nnunet_dvcl.errors import UserError

# How many voxels of a patch stand behind one of the network's coarsest level. With few, patches of two such voxels a
# side are so small that most of a step does not grow with them; with many, they would fill a workstation.
_FEW_VOXELS, _MANY_VOXELS = 2**8, 2**13
GIB = 2**30
_UPDATE = "nnunet_dvcl: update"


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training in float32."""

    held: int  # weights, their gradients, the optimizer's state, banks and queues
    loss: int  # the peak of what one step makes up to its loss: activations, what the contrast compares
    update: int  # its peak from then on: activations, gradients

    @property
    def step(self) -> int:
        return max(self.loss, self.update)

    @property
    def total(self) -> int:
        return self.held + self.step

    @property
    def mixed_precision(self) -> int:
        """About what nnU-Net needs on a GPU, where it keeps activations in float16."""
        return self.held + self.step // 2


def estimate(
    dataset_name_or_id: str, configuration: str, plans_identifier: str, trainer_name: str, **ssl: object
) -> Footprint:
    """Runs steps on two small patches of noise and goes on to the plan's patch in a straight line over the voxels.

    Args:
        dataset_name_or_id: as nnU-Net's ``-d``; planned, and preprocessed with these plans.
        configuration: as nnU-Net's ``-c``.
        plans_identifier: as nnU-Net's ``-p``.
        trainer_name: one of `nnunet_dvcl.trainers`.
        **ssl: values that replace those under the configuration's key ``"ssl"``.

    Raises:
        UserError: no such plans, configuration or trainer.
    """
    trainer_class = getattr(trainers, trainer_name, None)
    if trainer_class is None:
        raise UserError(f"No trainer {trainer_name} here: nnunet_dvcl trainers lists them.")
    plans_file = find_plans_file(dataset_name_or_id, plans_identifier)
    plans, dataset_json = load_json(plans_file), load_json(str(Path(plans_file).with_name("dataset.json")))
    check_configuration(plans_identifier, plans["configurations"], configuration)
    manager = PlansManager(deepcopy(plans)).get_configuration(configuration)
    patch_size = list(manager.patch_size)
    if not (Path(plans_file).parent / manager.data_identifier).is_dir():
        raise UserError(
            f"{dataset_name_or_id} is not preprocessed for {configuration}: run nnUNetv2_preprocess "
            f"-d {dataset_name_or_id} -plans_name {plans_identifier} -c {configuration}."
        )
    small, medium = small_patch_sizes(patch_size, manager.pool_op_kernel_sizes)

    def footprint(patch: list[int]) -> Footprint:
        resolved = deepcopy(plans)
        resolved["continue_training"] = False
        resolved["configurations"][configuration] = deepcopy(manager.configuration) | {
            "patch_size": patch,
            "ssl": manager.configuration.get("ssl", {}) | ssl,
        }
        with TemporaryDirectory() as results, mock.patch.dict(os.environ, {"nnUNet_results": results}):
            return measure(trainer_class, resolved, configuration, dataset_json)

    if patch_size in (small, medium):
        return footprint(patch_size)
    (x0, one), (x1, two) = ((np.prod(patch), footprint(patch)) for patch in (small, medium))

    def extrapolated(a: int, b: int) -> int:
        return round(b + (b - a) / (x1 - x0) * (np.prod(patch_size) - x1))

    return Footprint(one.held, extrapolated(one.loss, two.loss), extrapolated(one.update, two.update))


def small_patch_sizes(patch_size: list[int], strides: list[list[int]]) -> tuple[list[int], list[int]]:
    """Two patches of few voxels that the network can take, neither larger than the plan's; equal if there is one only.

    Normalization wants at least two voxels on the coarsest level.
    """
    least = np.prod(strides, axis=0)

    def times(factors: tuple[int, ...]) -> list[int]:
        return [int(min(size, factor * n)) for size, factor, n in zip(patch_size, factors, least, strict=True)]

    if len(patch_size) == 2:
        few, more = ((2, 1), (2, 2)) if np.prod(least) > _MANY_VOXELS else ((4, 4), (8, 8))
    elif np.prod(least) > _MANY_VOXELS:
        few, more = (2, 1, 1), (2, 2, 1)
    elif np.prod(least) < _FEW_VOXELS:
        few, more = (4, 4, 2), (4, 4, 4)
    else:
        few, more = (2, 2, 2), (4, 4, 2)
    return times(few), times(more)


def measure(trainer_class: type, plans: dict, configuration: str, dataset_json: dict) -> Footprint:
    """Runs three steps on noise, on the CPU. The third is measured: by then the bank and the queue hold rows."""
    trainer = trainer_class(plans, configuration, 0, dataset_json, torch.device("cpu"))
    trainer.initialize()
    trainer.on_train_epoch_start()
    manager = trainer.configuration_manager
    unlabeled = getattr(trainer, "unlabeled_batch_size", 0)
    trainer.dataloader_unlabeled = itertools.repeat(_noise(trainer, unlabeled, None))
    batch = _noise(trainer, manager.batch_size, trainer._get_deep_supervision_scales())
    for _ in range(2):
        trainer.train_step(batch)
    trainer.iteration = 0  # the first step of an epoch takes most: it looks at the gradient of each term
    peaks = _peaks_of_step(trainer, batch)
    parameters = list(itertools.chain.from_iterable(group["params"] for group in trainer.optimizer.param_groups))
    state = [value for values in trainer.optimizer.state.values() for value in values.values()]
    memory = [*trainer.memory.buffers()] if hasattr(trainer, "memory") else []
    tensors = [*parameters, *parameters, *(s for s in state if isinstance(s, torch.Tensor)), *memory]
    return Footprint(sum(t.numel() * t.element_size() for t in tensors), *peaks)


def _noise(trainer, batch_size: int, scales: list | None) -> dict:
    """A batch as nnU-Net's loaders make it; without `scales` that of the unlabeled stream."""
    patch_size = trainer.configuration_manager.patch_size
    image = torch.randn(batch_size, trainer.num_input_channels, *patch_size)
    if scales is None:
        return {"data": image, "target": torch.zeros(batch_size, 1, *patch_size, dtype=torch.int16)}
    regions = trainer.label_manager.has_regions
    heads = trainer.label_manager.num_segmentation_heads

    def target(shape: list[int]) -> torch.Tensor:
        channels = heads + trainer.label_manager.has_ignore_label if regions else 1
        return torch.randint(0, 2 if regions else heads, (batch_size, channels, *shape), dtype=torch.int16)

    shapes = [[round(n * s) for n, s in zip(patch_size, scale, strict=True)] for scale in scales or [[1.0] * 3]]
    keys = ["noise"] * batch_size
    return {"data": image, "target": [target(shape) for shape in shapes], "keys": keys}


def peak_bytes(call: Callable[[], object]) -> int:
    """The most that the tensors made by one call hold at once on the CPU: not what was there before."""
    return max((held for _, held in _held_over_time(_profiled(call))), default=0)


def _peaks_of_step(trainer: Any, batch: dict) -> tuple[int, int]:
    """Of `Footprint.loss` and `Footprint.update`: each is a straight line over the voxels, their maximum is not."""
    optimize = trainer._optimize

    def marked(total: torch.Tensor) -> torch.Tensor:
        with torch.profiler.record_function(_UPDATE):
            return optimize(total)

    with mock.patch.object(trainer, "_optimize", marked):
        events = _profiled(lambda: trainer.train_step(batch))
    begin = next(e.start_ns() for e in events if e.name() == _UPDATE)
    held = _held_over_time(events)
    return max(h for t, h in held if t < begin), max(h for t, h in held if t >= begin)


def _profiled(call: Callable[[], object]) -> list[Any]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    return profile.profiler.kineto_results.events()


def _held_over_time(events: list[Any]) -> list[tuple[int, int]]:
    """Nanoseconds, and the bytes that tensors hold from then on."""
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = itertools.accumulate(change for _, change in changes)
    return [(time, now) for (time, _), now in zip(changes, held, strict=True)]


def print_estimate(dataset_name_or_id: str, configuration: str, plans_identifier: str, trainer_name: str) -> None:
    """The table of ``nnunet_dvcl memory``: as configured, and with ``sequential_twins``."""
    arguments = (dataset_name_or_id, configuration, plans_identifier, trainer_name)
    rows = {"as configured": estimate(*arguments)}
    if hasattr(getattr(trainers, trainer_name).config_class, "sequential_twins"):
        rows["with ssl.sequential_twins=true"] = estimate(*arguments, sequential_twins=True)
    print(f"{trainer_name}, {configuration}, GiB:")
    print(f"{'':32}{'held':>8}{'a step':>8}{'float32':>9}{'AMP, about':>12}")
    for name, footprint in rows.items():
        numbers = (footprint.held, footprint.step, footprint.total, footprint.mixed_precision)
        held, step, total, mixed = (number / GIB for number in numbers)
        print(f"{name:32}{held:8.2f}{step:8.2f}{total:9.2f}{mixed:12.2f}")
    print(
        "A CPU trains in float32. On a GPU nnU-Net trains with AMP; CUDA itself needs 1 to 2 GiB more. Estimated from "
        "steps on small patches on this machine's CPU."
    )
