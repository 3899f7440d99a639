"""What the processes of these tests do: each job on each rank, and once more on one rank in the test's process."""

from __future__ import annotations

import random
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)
from torch import Tensor
from torch import distributed as dist

import nnunet_dvcl.trainers as trainers
from nnunet_dvcl import distributed
from nnunet_dvcl.cascade import next_stage
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.networks import unwrap
from nnunet_dvcl.trainers.base import (
    Adversary,
    AdversaryConfig,
    EMATeacher,
    EMATeacherConfig,
    Features,
    FeaturesConfig,
    Step,
    Term,
    Twins,
    TwinsConfig,
    nnUNetTrainerSSL,
)
from nnunet_dvcl.voxels.draws import draw_per_class, draw_voxels

TIMEOUT = timedelta(minutes=5)  # ranks that wait for each other are found out


def start(rank: int, ranks: int, folder: Path) -> None:
    """One rank: does the jobs of ``jobs.pth``, leaves what they return in ``rank_<rank>.pth``."""
    torch.set_num_threads(1)
    random.seed()  # a fork goes on with the numbers of its parent, a new process has its own
    np.random.seed()
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=TIMEOUT)
    torch.save(do(torch.load(folder / "jobs.pth", weights_only=False)), folder / f"rank_{rank}.pth")
    dist.destroy_process_group()


def do(jobs: dict[str, tuple[str, dict]]) -> dict[str, Any]:
    return {name: globals()[function](**arguments) for name, (function, arguments) in jobs.items()}


# --------------------------------------------------------------------------- the same batch, divided


def train(given: dict, batches: list[tuple[dict, dict]], compiled: bool = False) -> dict[str, Any]:
    """Training steps on this rank's parts of given batches; the gradients are those of the last step."""
    trainer = build(**given)
    if compiled:
        trainer._do_i_compile = lambda: True
        compile_, torch.compile = torch.compile, partial(torch.compile, backend="aot_eager")
    trainer.initialize()
    if compiled:
        torch.compile = compile_
    trainer.on_train_epoch_start()
    outputs = []
    for labeled, unlabeled in batches:
        trainer.dataloader_unlabeled = iter([_own_part(unlabeled)])
        outputs.append(trainer.train_step(_own_part(labeled)))
    modules = {"A": trainer.network, **getattr(trainer, "companions", {})}
    gradients = {
        f"{name}.{key}": None if p.grad is None else p.grad.clone()
        for name, module in modules.items()
        for key, p in unwrap(module).named_parameters()
    }
    return {"outputs": outputs, "gradients": gradients, **state(trainer)}


def _own_part(batch: dict) -> dict:
    size = len(batch["data"])
    start = sum(
        size // distributed.world_size() + (r < size % distributed.world_size()) for r in range(distributed.rank())
    )
    part = slice(start, start + distributed.local_batch_size(size))
    target = batch["target"]
    return {
        "data": batch["data"][part],
        "keys": batch["keys"][part],
        "target": [t[part] for t in target] if isinstance(target, list) else target[part],
    }


def build(trainer: str, configuration: str, plans: dict, dataset_json: dict, ssl: dict, fold: int | str = "all"):
    plans = {**plans, "continue_training": False}
    plans["configurations"][configuration]["ssl"] = ssl
    trainer_class = getattr(trainers, trainer, None) or globals()[trainer]
    return trainer_class(plans, configuration, fold, dataset_json, torch.device("cpu"))


class nnUNetTrainerDVCL_noDS(trainers.nnUNetTrainerDVCL, nnUNetTrainerNoDeepSupervision):
    """As a user combines the two."""


class AllPartsConfig(FeaturesConfig, AdversaryConfig, EMATeacherConfig, TwinsConfig):
    """The values of all parts."""


class nnUNetTrainerAllParts(Features, Adversary, EMATeacher, Twins, nnUNetTrainerSSL):
    """Every part of the base at once: none knows of another."""

    config_class = AllPartsConfig

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        student, teacher = step.unlabeled_patches(step.logits["B"]), self.teach(step.unlabeled_patches(step.image))
        distance = (self.labels.channel_probabilities(student) - self.labels.channel_probabilities(teacher)).square()
        rows = [self.project(name, volume, torch.arange(4)) for name, volume in step.features.items()]
        return {
            "fooled": Term.scaled(self.fool(step, self.labels.channel_probabilities(step.logits["A"])), 1.0),
            "consistency": Term.scaled(step.mean_over_unlabeled(distance.sum(1)), 1.0),
            "heads": Term(0.0 * sum(row.sum() for row in rows), 1.0),  # DDP wants a gradient of each
        }


def state(trainer) -> dict[str, dict[str, Tensor]]:
    """Everything that training changes."""
    weights = {f"A.{key}": value for key, value in unwrap(trainer.network).state_dict().items()}
    for name, module in getattr(trainer, "companions", {}).items():
        weights |= {f"{name}.{key}": value for key, value in unwrap(module).state_dict().items()}
    momentum = {
        f"{i}.{key}": torch.as_tensor(value)
        for i, slots in trainer.optimizer.state_dict()["state"].items()
        for key, value in slots.items()
        if value is not None
    }
    state = {
        "weights": weights,
        "memory": trainer.memory.state_dict() if hasattr(trainer, "memory") else {},
        "optimizer": momentum,
    }
    # an adversary has its optimizer in its state
    return {
        part: {key: value.clone() for key, value in values.items() if isinstance(value, Tensor)}
        for part, values in state.items()
    }


# --------------------------------------------------------------------------- a whole training


def whole_training(given: dict) -> dict[str, Any]:
    """From ``on_train_start`` to the last checkpoint, and what another trainer makes of that."""
    trainer = build(**given)
    seen, step = [], trainer.train_step

    def spy(batch):
        seen.append(batch["data"].clone())
        return step(batch)

    trainer.train_step = spy
    trainer.run_training()
    resumed = build(**given)
    resumed.load_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    drawn = {"python": random.random(), "numpy": np.random.rand(), "torch": torch.rand(()).item()}
    return {
        **state(trainer),
        "patches": torch.cat(seen),
        "unlabeled_patches": torch.from_numpy(np.asarray(next(trainer.dataloader_unlabeled)["data"])),
        "logged": trainer.logger.get_checkpoint(),
        "resumed": {**state(resumed), "epoch": resumed.current_epoch, "iteration": resumed.iteration},
        "drawn_after_resuming": drawn,
        "batch_sizes": (trainer.batch_size, trainer.unlabeled_batch_size),
    }


def first_steps(given: dict) -> dict[str, Any]:
    """The patches of an epoch, and the weights after it."""
    trainer = build(**given)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batches = [next(trainer.dataloader_train) for _ in range(trainer.num_iterations_per_epoch)]
    for batch in batches:
        trainer.train_step(batch)
    return {"patches": torch.cat([batch["data"] for batch in batches]), "weights": state(trainer)["weights"]}


def unseeded(given: dict) -> dict[str, Tensor]:
    """Initial weights, and what this rank would draw."""
    trainer = build(**given)
    trainer.initialize()
    return {"weights": state(trainer)["weights"], "drawn": torch.rand(4)}


def first_stage(given: dict) -> dict[str, list[str]]:
    """The unlabeled cases that this rank predicts for the next stage, and those that are there when it is done."""
    trainer = build(**given)
    trainer.on_train_start()
    predicted, save = [], next_stage._save
    with (
        mock.patch.object(type(trainer), "_num_processes", 1),
        mock.patch.object(
            next_stage, "_save", lambda folder, case, *args: (predicted.append(case), save(folder, case, *args))
        ),
    ):
        trainer._predict_next_stage()
    folder = Path(trainer.output_folder, "predicted_next_stage/cascade_tiny")
    return {"predicted": predicted, "there": sorted(file.stem for file in folder.glob("*.b2nd"))}


def refused(given: dict) -> str:
    trainer = build(**given)
    try:
        trainer.initialize()
    except UserError as error:
        return str(error)
    return "no error"


# --------------------------------------------------------------------------- the arithmetic alone


def arithmetic() -> dict[str, Any]:
    rank = distributed.rank()
    rows = torch.full((3, 3), float(rank), requires_grad=True)
    merged, merged_mask = distributed.merge_rows(rows, torch.tensor([False, rank == 1, rank == 1]))
    (merged * torch.arange(3)[:, None]).sum().backward()
    summed = torch.tensor([rank + 1.0, 10.0], requires_grad=True)
    merged_sums = distributed.merge_sums(summed)
    (merged_sums * torch.tensor([3.0, 4.0])).sum().backward()
    part = torch.tensor([rank + 1.0, 10.0])
    with distributed.single_rank():
        alone = {"total": distributed.total(part), "ranks": (distributed.world_size(), distributed.rank())}
    return {
        "total": distributed.total(part),
        "mean": distributed.mean(part),
        "alone": alone,
        "gather": distributed.gather(part),
        "untouched": part,
        "order": distributed.order_over_ranks(
            torch.tensor([[0.1, 0.5, torch.inf], [0.2, 0.2, 0.3]], dtype=torch.float64) + 0.05 * rank
        ),
        "ties": distributed.order_over_ranks(torch.zeros(1, 2)),
        "merged": merged.detach(),
        "merged_mask": merged_mask,
        "gradient": rows.grad,
        "merged_sums": merged_sums.detach(),
        "gradient_of_sums": summed.grad,
        "shares": [distributed.local_batch_size(size) for size in (2, 3, 5)],
        "objects": distributed.gather_objects({"rank": rank}),
    }


def draws(classes: Tensor, per_class: int, repeat: int) -> dict[str, Any]:
    """Draws from voxels that the ranks have between them: `classes` divided in unequal parts, 1 to 3."""
    number = int(classes.max()) + 1
    if distributed.world_size() == 2:
        quarter = len(classes) // 4
        classes = classes[:quarter] if distributed.rank() == 0 else classes[quarter:]
        offset = quarter * distributed.rank()
    else:
        offset = 0
    torch.manual_seed(distributed.rank())

    def merged(index: Tensor, is_local: Tensor) -> Tensor:
        table, mask = distributed.merge_rows((index + offset)[..., None].float(), is_local)
        return table[..., 0].long().where(mask, -1)

    drawn = [merged(*draw_per_class(classes, number, per_class)) for _ in range(repeat)]
    voxels = [merged(*draw_voxels(classes == 0, per_class)) for _ in range(repeat)]
    return {"per_class": torch.stack(drawn), "voxels": [v[v >= 0] for v in voxels]}
