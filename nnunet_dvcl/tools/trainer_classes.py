"""Trainers by their names, as ``-tr`` takes them."""

import contextlib
import io

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_dvcl import trainers
from nnunet_dvcl.errors import UserError


def find_trainer_class(name: str) -> type[nnUNetTrainer]:
    """One of ours, of nnU-Net's, or of the user's own in ``nnUNet_extTrainer``.

    Raises:
        UserError: there is no such trainer.
    """
    ours = getattr(trainers, name, None)
    if ours is not None:
        return ours
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the finder tells its whole way
            return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise UserError(
            f"There is no trainer {name}. Ours are listed by nnunet_dvcl trainers; nnU-Net's own are nnUNetTrainer and "
            "its variants."
        ) from error
