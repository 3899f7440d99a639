"""nnU-Net's checkpoint plus one key, ``ssl_state``: everything that training needs and prediction does not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.trainers.base.config import TrainingConfig

Weights = Mapping[str, Tensor]


@dataclass
class SSLState:
    """What resuming needs beside nnU-Net's own checkpoint; stored as a plain dict."""

    trainer: str
    config: dict[str, Any]
    iteration: int = 0
    companions: dict[str, dict] = field(default_factory=dict)
    memory: dict = field(default_factory=dict)


def add_ssl_state(partial: str, state: SSLState, loadable_by: str) -> None:
    """Turns the checkpoint that nnU-Net wrote to `partial` into ours.

    Args:
        partial: nnU-Net's checkpoint.
        state: what is added.
        loadable_by: the trainer class that plain nnU-Net builds the network with at prediction.
    """
    checkpoint = torch.load(partial, map_location="cpu", weights_only=False)
    checkpoint["ssl_state"] = vars(state)
    checkpoint["trainer_name"] = loadable_by
    with open(partial, "wb") as file:
        torch.save(checkpoint, file)


def read_ssl_state(filename: str, trainer: str, config: TrainingConfig, device: torch.device) -> SSLState:
    """Reads the key ``ssl_state`` and compares it with the run that wants to go on.

    Raises:
        UserError: no whole checkpoint, one of another trainer, or of other values under ``"ssl"``; says what differs.
    """
    if not is_zipfile(filename):  # what torch.save writes ends with the list of its contents
        raise UserError(
            f"{filename} is damaged, or no checkpoint. Move it away: --c then goes on from what is there of "
            "checkpoint_latest.pth and checkpoint_best.pth."
        )
    checkpoint = torch.load(filename, map_location=device, weights_only=False)
    if "ssl_state" not in checkpoint:
        raise UserError(
            f"{filename} is a checkpoint of {checkpoint['trainer_name']}, without the state that {trainer} goes on "
            "from. To start from its weights, train without --c and give it as -pretrained_weights."
        )
    state, saved_by = _as_of_today(SSLState(**checkpoint["ssl_state"]), config)
    if state.trainer != trainer and saved_by == trainer:
        raise UserError(
            f"{filename} is from before {trainer} learned pseudo-labels at full weight. To go on with it as it began, "
            f"rename the folder {trainer}__... to {state.trainer}__... and use -tr {state.trainer}."
        )
    if state.trainer != trainer:
        raise UserError(
            f"{filename} is a checkpoint of {state.trainer}, this run is {trainer}: use -tr {state.trainer}."
        )
    if differences := config.differences(state.config):
        raise UserError(
            "\n  ".join([f"{filename} was trained with other values:", *differences])
            + "\nSet them back in the plans file, or train under a configuration of its own (nnunet_dvcl configure)."
        )
    return state


_ONE_VIEW = {"views": "same", "cutmix_probability": 0.0, "pseudo_label_loss": "ce", "consistency_start": 0.0}
_NOW_SAME_VIEW = re.compile(r"^(nnUNetTrainer(?:CPS|CPS_HqCL|DVCL))(_\d+epochs)?$")


def _as_of_today(state: SSLState, config: TrainingConfig) -> tuple[SSLState, str]:
    """The state under the name and the values that mean today what they meant; and the name that it was saved by.

    Without the key ``mirroring`` a training mirrored. Until there were weak and strong views, every trainer with twins
    that has them now made its pseudo-labels on the students' own view.
    """
    saved_by = state.trainer
    state = replace(state, config={"mirroring": True} | state.config)
    has_views_now = "views" in type(config).model_fields
    if has_views_now and "independent_intensities" in state.config and "views" not in state.config:
        state = replace(state, trainer=_NOW_SAME_VIEW.sub(r"\1_SameView\2", saved_by), config=_ONE_VIEW | state.config)
    return state, saved_by
