"""The device that a command runs on."""

import torch

from nnunet_dvcl.errors import UserError


def find_device(name: str | None) -> torch.device:
    """The named device, or a GPU where there is one; ``UserError`` where the named one is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None:
        name = "cuda" if available["cuda"] else "cpu"
    if not available[name]:
        raise UserError(f"torch finds no {name} device here: use -device cpu.")
    return torch.device(name)
