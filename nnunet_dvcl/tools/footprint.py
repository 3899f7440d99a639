"""``nnunet_dvcl memory``: the footprint of a training, estimated before it begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from copy import deepcopy
from decimal import Decimal
from itertools import accumulate, repeat
from math import prod
from os.path import dirname, isdir, join
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dvcl.commands import dataset_number
from nnunet_dvcl.data.folders import check_configuration, find_plans_file, num_channels
from nnunet_dvcl.data.processes import environment_variable
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.networks import tensors_in
from nnunet_dvcl.progress import Progress
from nnunet_dvcl.tools.quiet import quiet
from nnunet_dvcl.tools.trainer_classes import find_trainer_class
from nnunet_dvcl.trainers.base import nnUNetTrainerPlugin, nnUNetTrainerSSL

# How many voxels of a patch stand behind one of the network's coarsest level. With few, patches of two such voxels a
# side are so small that most of a step does not grow with them; with many, they would fill a workstation.
_FEW_VOXELS, _MANY_VOXELS = 2**8, 2**13
GIB = 2**30
STEPS = 3
_UPDATE = "nnunet_dvcl: update"


class Footprint(NamedTuple):
    """Bytes of a training in float32."""

    held: int  # weights, their gradients, optimizers' states, teachers, banks and queues
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
    dataset_name_or_id: str,
    configuration: str,
    plans_identifier: str,
    trainer_name: str,
    after_step: Callable[[], object] = lambda: None,
    **ssl: object,
) -> Footprint:
    """Runs steps on two small patches of noise and goes on to the plan's patch in a straight line over the voxels.

    The data set, its configuration, plans and trainer are named as for nnU-Net's commands; the trainer is of this
    package or on its base. `after_step` is called after each of `STEPS` steps on either patch. `ssl` replaces values
    under the configuration's key ``"ssl"``.

    Raises:
        UserError: no such plans, configuration or trainer, or data that are not preprocessed.
    """
    trainer_class = find_trainer_class(trainer_name)
    if not issubclass(trainer_class, nnUNetTrainerPlugin):
        raise UserError(f"{trainer_name} is not of this package: nnunet_dvcl trainers lists those that are.")
    plans_file = find_plans_file(dataset_name_or_id, plans_identifier)
    dataset_json, plans = load_json(join(dirname(plans_file), "dataset.json")), PlansManager(plans_file)
    check_configuration(plans_identifier, plans.available_configurations, configuration)
    manager = plans.get_configuration(configuration)
    if not isdir(join(dirname(plans_file), manager.data_identifier)):
        raise UserError(
            f"{dataset_name_or_id} is not preprocessed for {configuration}: run nnUNetv2_preprocess "
            f"-d {dataset_number(plans.dataset_name)} -plans_name {plans_identifier} -c {configuration}."
        )

    def footprint(size: list[int]) -> Footprint:
        resolved = deepcopy(plans.plans) | {"continue_training": False}
        ssl_options = manager.configuration.get("ssl", {}) | ssl
        resolved["configurations"][configuration] = manager.configuration | {"patch_size": size, "ssl": ssl_options}
        # a trainer makes its folder: here it is deleted afterwards
        with TemporaryDirectory() as folder, environment_variable("nnUNet_results", folder):
            return measure(trainer_class, resolved, configuration, dataset_json, after_step)

    patch_size = list(manager.patch_size)
    small, medium = small_patch_sizes(patch_size, manager.pool_op_kernel_sizes)
    if patch_size in (small, medium):
        return footprint(patch_size)
    (x0, one), (x1, two) = ((prod(size), footprint(size)) for size in (small, medium))

    def extrapolated(a: int, b: int) -> int:
        return round(b + (b - a) / (x1 - x0) * (prod(patch_size) - x1))

    return Footprint(one.held, extrapolated(one.loss, two.loss), extrapolated(one.update, two.update))


def small_patch_sizes(patch_size: list[int], strides: list[list[int]]) -> tuple[list[int], list[int]]:
    """Two patches of few voxels that the network can take, neither larger than the plan's; equal if there is one only.

    Normalization wants at least two voxels on the coarsest level.
    """
    least = [prod(axis) for axis in zip(*strides, strict=True)]
    if len(patch_size) == 2:
        factors = ((2, 1), (2, 2)) if prod(least) > _MANY_VOXELS else ((4, 4), (8, 8))
    elif prod(least) > _MANY_VOXELS:
        factors = (2, 1, 1), (2, 2, 1)
    elif prod(least) < _FEW_VOXELS:
        factors = (4, 4, 2), (4, 4, 4)
    else:
        factors = (2, 2, 2), (4, 4, 2)
    few, more = ([min(n, k * low) for n, k, low in zip(patch_size, factor, least, strict=True)] for factor in factors)
    return few, more


def measure(
    trainer_class: type, plans: dict, configuration: str, dataset_json: dict, after_step: Callable[[], object]
) -> Footprint:
    """Runs steps on noise, on the CPU. The last one is measured: by then the bank and the queue hold rows."""

    class Marked(trainer_class):
        def update_weights(self, loss: torch.Tensor) -> torch.Tensor:
            with torch.profiler.record_function(_UPDATE):
                return super().update_weights(loss)

    trainer = Marked(plans, configuration, 0, dataset_json, torch.device("cpu"))
    trainer.initialize()
    trainer.on_train_epoch_start()
    trainer.dataloader_unlabeled = repeat(_unlabeled_noise(trainer))
    batch = _labeled_noise(trainer)
    for _ in range(STEPS - 1):
        trainer.train_step(batch)
        after_step()
    trainer.iteration = 0  # the first step of an epoch takes most: it looks at the gradient of each term
    trace = _profiled(lambda: trainer.train_step(batch))
    after_step()
    begin = next(event["ts"] for event in trace if event["name"] == _UPDATE)
    held = _held_over_time(trace)
    # two peaks: each is a straight line over the voxels, their maximum is not
    loss, update = max(n for t, n in held if t < begin), max(n for t, n in held if t >= begin)
    return Footprint(_held_between_steps(trainer), loss, update)


def _num_channels(trainer) -> int:
    """Of the images that the loaders make: several views stand one behind the other."""
    if not isinstance(trainer, nnUNetTrainerSSL):
        return trainer.num_input_channels
    *_, size, _ = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    segmentation = torch.zeros(1 + trainer.is_cascaded, *size, dtype=torch.int16)
    image = torch.zeros(num_channels(trainer.dataset_json), *size)
    return len(trainer.unlabeled_transforms()(image=image, segmentation=segmentation)["image"])


def _unlabeled_noise(trainer) -> dict:
    """A batch of the unlabeled stream."""
    size, patch_size = getattr(trainer, "unlabeled_batch_size", 0), trainer.configuration_manager.patch_size
    image = torch.randn(size, _num_channels(trainer), *patch_size)
    return {"data": image, "target": torch.zeros(size, 1, *patch_size, dtype=torch.int16)}


def _labeled_noise(trainer) -> dict:
    """A batch as nnU-Net's loaders make it: noise that has gone through the trainer's transforms."""
    rotation, dummy_2d, size, mirror_axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    configuration, labels = trainer.configuration_manager, trainer.label_manager
    transforms = trainer.get_training_transforms(
        configuration.patch_size,
        rotation,
        trainer._get_deep_supervision_scales(),
        mirror_axes,
        dummy_2d,
        use_mask_for_norm=configuration.use_mask_for_norm,
        is_cascaded=trainer.is_cascaded,
        foreground_labels=labels.foreground_labels,
        regions=labels.foreground_regions if labels.has_regions else None,
        ignore_label=labels.ignore_label,
    )
    values = torch.tensor(sorted(labels.all_labels), dtype=torch.int16)
    patches = [
        transforms(
            image=torch.randn(num_channels(trainer.dataset_json), *size),
            segmentation=values[torch.randint(len(values), (1 + trainer.is_cascaded, *size))],
        )
        for _ in range(configuration.batch_size)
    ]
    images, targets = ([patch[key] for patch in patches] for key in ("image", "segmentation"))
    of_levels = isinstance(targets[0], list)
    target = [torch.stack(level) for level in zip(*targets, strict=True)] if of_levels else torch.stack(targets)
    return {"data": torch.stack(images), "target": target, "keys": ["noise"] * len(patches)}


def _held_between_steps(trainer) -> int:
    parameters = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    memory = trainer.memory.state_dict() if hasattr(trainer, "memory") else {}
    gradients, state = parameters, [list(values.values()) for values in trainer.optimizer.state.values()]
    # nnU-Net's decoder holds the encoder too, so that a state_dict has its weights twice
    of_memory = {tensor.data_ptr(): tensor.nbytes for tensor in tensors_in(memory)}
    return sum(tensor.nbytes for tensor in tensors_in([parameters, gradients, state])) + sum(of_memory.values())


def peak_bytes(call: Callable[[], object]) -> int:
    """The most that the tensors made by one call hold at once on the CPU: not what was there before."""
    return max((held for _, held in _held_over_time(_profiled(call))), default=0)


def _profiled(call: Callable[[], object]) -> list[dict]:
    """The events of a call in the form of Chrome's traces: ``"ts"`` is the time in microseconds."""
    with (
        environment_variable("KINETO_LOG_LEVEL", "99"),  # without a GPU torch 2.14's profiler prints an ERROR
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
    ):
        call()
    with TemporaryDirectory() as folder:
        file = join(folder, "trace.json")
        profile.export_chrome_trace(file)
        with open(file, encoding="utf-8") as handle:
            # a float does not tell two nanoseconds of our days apart
            return json.load(handle, parse_float=Decimal)["traceEvents"]


def _held_over_time(trace: list[dict]) -> list[tuple[Decimal, int]]:
    """Times, and the bytes that tensors hold from then on."""
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in trace if event["name"] == "[memory]")
    held = accumulate(change for _, change in changes)
    return [(time, now) for (time, _), now in zip(changes, held, strict=True)]


def print_estimate(dataset_name_or_id: str, configuration: str, plans_identifier: str, trainer_name: str) -> None:
    """The table of ``nnunet_dvcl memory``: as configured, and with ``sequential_twins``."""
    cases = {"as configured": {}}
    if len(getattr(find_trainer_class(trainer_name), "student_names", "A")) > 1:
        cases["with ssl.sequential_twins=true"] = {"sequential_twins": True}
    with closing(Progress("Steps on small patches", 2 * STEPS * len(cases), "step")) as progress, quiet():
        given = dataset_name_or_id, configuration, plans_identifier, trainer_name, progress.advance
        rows = {name: estimate(*given, **ssl) for name, ssl in cases.items()}
    print(f"{trainer_name}, {configuration}, GiB:")
    print(f"{'':32}{'held':>8}{'a step':>8}{'float32':>9}{'AMP, about':>12}")
    for name, needed in rows.items():
        numbers = (needed.held, needed.step, needed.total, needed.mixed_precision)
        print("{:32}{:8.2f}{:8.2f}{:9.2f}{:12.2f}".format(name, *(number / GIB for number in numbers)))
    print(
        "A CPU trains in float32. On a GPU nnU-Net trains with AMP; CUDA itself needs 1 to 2 GiB more. Estimated from "
        "steps on small patches on this machine's CPU."
    )
