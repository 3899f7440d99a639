"""The jobs: which functions of `ranks` are called, and with what."""

from __future__ import annotations

from typing import Any

import ranks
import torch
from small_values import SMALL

from nnunet_dvcl.data import preprocess_unlabeled

Jobs = dict[str, tuple[str, dict[str, Any]]]  # name of the job -> name of the function, arguments

# Draws that take everything leave nothing to chance: two ranks and one then compute the same. The terms weigh as much
# as the supervised loss, else their gradients would hide in its rounding.
EVERYTHING = SMALL | {
    "num_anchors": 1300,
    "num_negatives": 1300,
    "bank_capacity": 2600,
    "num_queries": 400,
    "queue_capacity": 2000,
    "unlabeled_batch_size": 3,
    "views": "same",
    "cutmix_probability": 0.0,
    "pseudo_label_loss": "ce",
    "consistency_start": 0.0,
    "rampup_fraction": 0.0,
    "consistency_weight": 1.0,
    "contrastive_weight": 1.0,
    "distance_weight": 1.0,
}
UNEVEN = {"unlabeled_batch_size": 3, "pseudo_label_loss": "ce"}  # nnU-Net's Dice of a batch needs even parts
IGNORED = 3  # in the data sets with an ignore label
METHODS = (
    *("CPS", "CPS_HqCL", "DVCL", "CL_VCL"),
    *("DVCL_InfoNCE", "DVCL_SimCLR", "DVCL_NNCLR", "DVCL_SNCLR", "DVCL_LogLikelihood_SNCLRWeights"),
)
OTHERS = ("MT", "UAMT", "DAN", "DTC", "SASSNet", "CLD", "DHC", "U2PL", "CCL", "UGPCL", "BaCon")
ON_CPS = ("U2PL", "CCL", "UGPCL", "BaCon")  # once more on their other host
# draws that take everything of one network
OF_ONE_NETWORK = {"num_anchors": 640, "num_negatives": 2600, "contrastive_start": 0.0}
OF_TWO_SIDES = {"num_anchors": 1280, "bank_capacity": 8}  # half of the anchors of each side; a mean a step
OF_A_BANK = {"num_anchors": 2600}  # and all of the bank
# nor to rounding, which a steep surface makes larger
WITHOUT_CHANCE = {
    "teacher_noise": 0.0,
    "dropout": 0.0,
    "certain_entropy": 0.95,
    "adversary_dropout": 0.0,
    "steepness": 10.0,
    "sampling_power": 0.0,
}
WITHOUT_DEEP_SUPERVISION = ("CPS_Paper", "DVCL_Paper", "DVCL_noDS")
# a gradient that is missing is found out in the second step; those of METHODS and "two steps" do the same
TWICE = ("MagicNet", "CPS", "CPS_HqCL", "DVCL_SimCLR", "CL_VCL", "DVCL_noQDS", "DVCL_noNPS", *WITHOUT_DEEP_SUPERVISION)
CLASSES = torch.tensor([0] * 40 + [1] * 8 + [0] * 40 + [-1] * 32 + [2] * 4 + [1] * 4)


def given(tiny, trainer: str, configuration: str = "2d_tiny", **ssl) -> dict[str, Any]:
    return {
        "trainer": f"nnUNetTrainer{trainer}",
        "configuration": configuration,
        "plans": tiny.plans,
        "dataset_json": tiny.dataset_json,
        "ssl": ssl,
    }


def on_given_batches(mode: str, tiny) -> Jobs:
    preprocess_unlabeled(tiny.name, "2d", num_processes=1)
    batches = _batches(tiny, 2)
    if mode != "labels":
        jobs = {mode: ("train", {"given": given(tiny, "DVCL", **EVERYTHING), "batches": batches[:1]})}
        if mode == "ignore":
            nothing = [_nothing_on_rank_1(*batch) for batch in batches]
            ssl = EVERYTHING | {"ignored_as_unlabeled": False}
            jobs["rank 1 has no voxel"] = ("train", {"given": given(tiny, "DVCL", **ssl), "batches": nothing})
        return jobs
    jobs = {name: ("train", {"given": given(tiny, name, **EVERYTHING), "batches": batches[:1]}) for name in METHODS}
    for name in OTHERS:
        ssl = EVERYTHING | WITHOUT_CHANCE | _of_contrast(name)
        of_trainer = _batches(tiny, 3, name)
        arguments = {"given": given(tiny, name, **ssl), "batches": _left(of_trainer) if name in ON_CPS else of_trainer}
        jobs[name] = ("train", arguments)
    for name in ON_CPS:
        ssl = EVERYTHING | WITHOUT_CHANCE | _of_contrast(name) | {"host": "cps"}
        jobs[f"{name} on CPS"] = ("train", {"given": given(tiny, name, **ssl), "batches": _left(batches)})
    jobs["two steps"] = ("train", {"given": given(tiny, "DVCL", **EVERYTHING), "batches": batches})
    sequential = EVERYTHING | {"sequential_twins": True}
    jobs["sequential"] = ("train", {"given": given(tiny, "DVCL_SimCLR", **sequential), "batches": batches[:1] * 2})
    jobs["Supervised"] = ("train", {"given": given(tiny, "Supervised", **SMALL), "batches": batches})
    padded = [(labeled, _padded(unlabeled, rank_1=slice(None))) for labeled, unlabeled in batches[:1]]
    for name in ("DVCL", "DVCL_SimCLR", "CL_VCL"):
        jobs[f"{name}, rank 1 has padding alone"] = (
            "train",
            {"given": given(tiny, name, **EVERYTHING), "batches": padded},
        )
    jobs["compiled"] = ("train", {"given": given(tiny, "DVCL", **EVERYTHING), "batches": batches, "compiled": True})
    jobs["AllParts"] = (
        "train",
        {"given": given(tiny, "AllParts", **SMALL, unlabeled_batch_size=3, adversary_dropout=0.0), "batches": batches},
    )
    # what makes views and boxes random is left out; weak views are a little different from strong ones
    weak_strong = EVERYTHING | {"views": "weak_strong", "pseudo_label_loss": "nnunet", "unlabeled_batch_size": 2}
    jobs["weak and strong"] = (
        "train",
        {"given": given(tiny, "CPS_HqCL", **weak_strong), "batches": [_weak_strong(*batches[0])]},
    )
    few = EVERYTHING | {"num_negatives": 4}
    jobs["few negatives"] = ("train", {"given": given(tiny, "CPS_HqCL", **few), "batches": batches})
    for name in TWICE:
        deep_supervision = name not in WITHOUT_DEEP_SUPERVISION
        of_trainer = batches if deep_supervision else [(_full_resolution(one), two) for one, two in batches]
        arguments = given(tiny, name, **EVERYTHING)
        arguments["plans"]["configurations"]["2d_tiny"]["patch_size"] = [8, 16]  # as the batches; MagicNet cuts it
        jobs[f"{name}, twice"] = ("train", {"given": arguments, "batches": of_trainer})
    jobs["draws"] = ("draws", {"classes": CLASSES, "per_class": 6, "repeat": 400})
    return jobs


def _of_contrast(name: str) -> dict[str, Any]:
    if name not in ON_CPS:
        return {}
    return OF_ONE_NETWORK | {"UGPCL": OF_TWO_SIDES, "U2PL": OF_A_BANK}.get(name, {})


def of_two_ranks_alone(tiny) -> Jobs:
    return {
        "arithmetic": ("arithmetic", {}),
        "whole": ("whole_training", {"given": given(tiny, "DVCL", **SMALL | UNEVEN)}),
        "seeded": ("first_steps", {"given": given(tiny, "DVCL", **SMALL)}),
        "seeded, again": ("first_steps", {"given": given(tiny, "DVCL", **SMALL)}),
        "unseeded": ("unseeded", {"given": given(tiny, "DVCL", **SMALL | {"seed": None})}),
        "uneven": ("refused", {"given": given(tiny, "DVCL", **SMALL, unlabeled_batch_size=3)}),
        "too small": ("refused", {"given": given(tiny, "DVCL", **SMALL, unlabeled_batch_size=1)}),
    }


def of_a_cascade(tiny) -> Jobs:
    return {"first stage": ("first_stage", {"given": given(tiny, "CPS", "3d_lowres_tiny", **SMALL)})}


def _batches(tiny, number: int, trainer: str = "DVCL") -> list[tuple[dict, dict]]:
    """Two labeled and three unlabeled patches each, of 8 x 16 pixels; half of the first unlabeled one is padding."""
    trainer = ranks.build(**given(tiny, trainer, **EVERYTHING))
    trainer.on_train_start()
    batches = [(next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)) for _ in range(number)]
    return [(_half(labeled), _padded(_half(unlabeled), rank_0=slice(4))) for labeled, unlabeled in batches]


def _half(batch: dict) -> dict:
    """The upper half of each patch, on each level of deep supervision, which is faster; with noise.

    Without, pixels of an even background have equal features, and which of them is the nearest is a matter of rounding.
    """

    data = _first_half(batch["data"], axis=2)
    return {**batch, "data": data + 0.3 * torch.randn(data.shape), "target": _first_half(batch["target"], axis=2)}


def _left(batches: list[tuple[dict, dict]]) -> list[tuple[dict, dict]]:
    """The left half of each patch: what contrasts each voxel with each takes a quarter of the time."""

    def left(batch: dict) -> dict:
        return batch | {key: _first_half(batch[key], axis=3) for key in ("data", "target")}

    return [(left(labeled), left(unlabeled)) for labeled, unlabeled in batches]


def _first_half(volume: torch.Tensor | list[torch.Tensor], axis: int) -> torch.Tensor | list[torch.Tensor]:
    """Along an axis; of each level of deep supervision where there are several."""
    if isinstance(volume, list):
        return [_first_half(level, axis) for level in volume]
    return volume.narrow(axis, 0, volume.shape[axis] // 2)


def _weak_strong(labeled: dict, unlabeled: dict) -> tuple[dict, dict]:
    """Two views of each patch, and one unlabeled patch a rank, without padding.

    nnU-Net's cross entropy is a mean over the known voxels of a rank, whatever the others have.
    """

    def views(batch: dict, number: int) -> dict:
        data = batch["data"][:number]
        return {**batch, "data": torch.cat((data, data + 0.1 * torch.randn(data.shape)), 1)}

    return views(labeled, 2), {**views(unlabeled, 2), "target": torch.zeros_like(unlabeled["target"][:2])}


def _full_resolution(labeled: dict) -> dict:
    highest, *_, valid = labeled["target"]
    return {**labeled, "target": [highest, valid]}


def _nothing_on_rank_1(labeled: dict, unlabeled: dict) -> tuple[dict, dict]:
    """With every voxel of its labeled patch ignored, and every one of its unlabeled patch padding."""
    *levels, valid = (level.clone() for level in labeled["target"])
    for level in levels:
        level[1] = IGNORED
    return {**labeled, "target": [*levels, valid]}, _padded(unlabeled, rank_1=slice(None))


def _padded(unlabeled: dict, rank_0: slice = slice(0), rank_1: slice = slice(0)) -> dict:
    """With these rows of the first patch, which is of rank 0, and of the third, which is of rank 1, made padding."""
    target = unlabeled["target"].clone()
    target[0, :, rank_0] = -1
    target[2, :, rank_1] = -1
    return {**unlabeled, "target": target}
