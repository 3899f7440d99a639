"""Training lengths in nnU-Net's fashion: every trainer's name may end in ``_<N>epochs``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from nnunet_dvcl.trainers.base.config import TrainingConfig

_NAME = re.compile(r"(\w+)_([1-9][0-9]*)epochs")


class FixedLength:
    """The part that a trainer of fixed length adds: the number in its name wins over ``ssl.num_epochs``."""

    fixed_num_epochs: ClassVar[int]

    def read_config(self) -> TrainingConfig:
        config = super().read_config()
        in_plans = "num_epochs" in self.configuration_manager.configuration.get("ssl", {})
        if in_plans and config.num_epochs != self.fixed_num_epochs:
            self.print_to_log_file(
                f"{type(self).__name__} trains for {self.fixed_num_epochs} epochs, as its name says; "
                f"ssl.num_epochs = {config.num_epochs} of the plans does not count."
            )
        return config.model_copy(update={"num_epochs": self.fixed_num_epochs})


def trainer_of_length(name: str, trainers: Mapping[str, type], module: str) -> type | None:
    """Makes the trainer that a name such as ``nnUNetTrainerDVCL_20epochs`` asks for.

    Args:
        name: a trainer's name, ``_``, a whole number of at least 1 without leading zeros, ``epochs``.
        trainers: name -> trainer.
        module: where the caller keeps the new class under its name; pickle looks there.

    Returns:
        A new class; None for any other name.
    """
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in trainers:
        return None
    trainer, number = trainers[match[1]], int(match[2])
    summary = f"{trainer.__name__} for {number} epochs."
    return type(name, (FixedLength, trainer), {"__doc__": summary, "__module__": module, "fixed_num_epochs": number})
