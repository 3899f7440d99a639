"""Trainers by their names, as ``-tr`` takes them."""

from contextlib import suppress

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_dvcl import trainers
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.quiet import quiet


def find_trainer_class(name: str) -> type[nnUNetTrainer]:
    """One of ours that trains, of nnU-Net's, or of the user's in ``nnUNet_extTrainer``; ``UserError`` where none is."""
    if name != "nnUNetTrainerSSL":  # the base of the methods does not train
        with quiet(), suppress(RuntimeError):
            return getattr(trainers, name, None) or recursive_find_trainer_class_by_name(name)
    raise UserError(
        f"There is no trainer {name}. Ours are listed by nnunet_dvcl trainers; nnU-Net's own are nnUNetTrainer and its "
        "variants."
    )


def preset_assignments(name: str | None) -> list[str]:
    """``key=value`` of what a trainer's preset of this name wants; none without a name."""
    presets = {p.name: p for t in trainers.__all__ if (p := getattr(getattr(trainers, t), "preset", None))}
    if name is not None and name not in presets:
        raise UserError(f"There is no preset {name}. There are: {', '.join(presets)}.")
    return presets[name].assignments if name else []
