"""What a checkpoint holds, read without running anything that stands in it."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from torch import Tensor

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.networks import tensors_in

NNUNETS_KEYS = ("network_weights", "trainer_name", "init_args", "current_epoch", "logging", "_best_ema")

# nnU-Net's logged values are NumPy scalars; NumPy 1 wrote them under another name
_scalar = np.float64().__reduce__()[0]
_PLAIN_NUMPY = [
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")),
]


def read_plain(file: str) -> dict[str, Any]:
    """The checkpoint, of tensors, which are read from the file when they are used, and plain values: nothing is called.

    Raises:
        UserError: no checkpoint of nnU-Net, one that holds anything else, or a PyTorch that cannot tell.
    """
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        raise UserError(f"nnunet_dvcl inspect needs PyTorch 2.6 or newer, this is {torch.__version__}.")
    if not os.path.isfile(file):
        raise UserError(f"{file} does not exist, or is no file.")
    if not is_zipfile(file):
        raise UserError(f"{file} is damaged, or no checkpoint.")
    try:
        with torch.serialization.safe_globals(_PLAIN_NUMPY):
            checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise UserError(
            f"{file} holds more than tensors and plain values{what} and was not read. nnU-Net would run what stands in "
            "it: do not train on it or predict with it unless you know where it comes from."
        ) from error
    except (RuntimeError, ValueError, EOFError, KeyError, IndexError) as error:
        raise UserError(f"{file} is damaged, or no checkpoint ({str(error).splitlines()[0]}).") from error
    missing = [key for key in NNUNETS_KEYS if key not in checkpoint] if isinstance(checkpoint, dict) else NNUNETS_KEYS
    if missing:
        raise UserError(f"{file} is no checkpoint of nnU-Net: it has no {', '.join(missing)}.")
    return checkpoint


def describe(file: str, checkpoint: dict[str, Any]) -> str:
    """What it is, as lines to read; ``UserError`` where values are not what nnU-Net, or this package, writes."""
    try:
        lines = [file, *_training(checkpoint), "", *_parts(checkpoint)]
        if state := checkpoint.get("ssl_state"):
            options = (f"ssl.{key} = {value}" for key, value in state["config"].items())
            lines += ["", *_filled_rows(state["memory"]), "", *options]
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"{file} is no checkpoint of nnU-Net: {type(error).__name__}: {error}.") from error
    # nor may a terminal take a name for a command
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def _training(checkpoint: dict) -> Iterator[str]:
    arguments, best = checkpoint["init_args"], checkpoint["_best_ema"]
    dice = checkpoint["logging"]["dice_per_class_or_region"]
    state = checkpoint.get("ssl_state")
    yield f"trainer         {state['trainer'] if state else checkpoint['trainer_name']}"
    yield f"predicted with  {checkpoint['trainer_name']}"
    yield f"data set        {arguments['plans']['dataset_name']}"
    yield f"plans           {arguments['plans']['plans_name']}"
    yield f"configuration   {arguments['configuration']}"
    yield f"fold            {arguments['fold']}"
    yield f"epochs done     {checkpoint['current_epoch']}" + (f" of {state['config']['num_epochs']}" if state else "")
    if state:
        yield f"iterations      {state['iteration']}"
    yield "best pseudo Dice (moving average)  " + ("none yet" if best is None else f"{float(best):.4f}")
    if dice:
        yield "last pseudo Dice by organ          " + " ".join(f"{float(value):.4f}" for value in dice[-1])


def _parts(checkpoint: dict) -> Iterator[str]:
    yield f"{'part':<24}{'numbers':>14}{'MiB':>10}"
    parts = {"network_weights": checkpoint["network_weights"], "optimizer_state": checkpoint.get("optimizer_state")}
    if state := checkpoint.get("ssl_state"):
        parts |= {f"companions.{name}": weights for name, weights in state["companions"].items()}
        parts |= {f"memory.{name}": tensors for name, tensors in _by_memory(state["memory"]).items()}
    for name, part in parts.items():
        tensors = list(tensors_in(part))
        numbers, size = sum(tensor.numel() for tensor in tensors), sum(tensor.nbytes for tensor in tensors)
        yield f"{name:<24}{numbers:>14,}{size / 2**20:>10.2f}"


def _by_memory(memory: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    memories: dict[str, dict[str, Tensor]] = {}
    for key, tensor in memory.items():
        name, _, buffer = key.partition(".")
        memories.setdefault(name, {})[buffer] = tensor
    return memories


def _filled_rows(memory: dict[str, Tensor]) -> Iterator[str]:
    """Rings of rows have a `count`: one number, or one for each class. Averaged networks have none."""
    for name, tensors in _by_memory(memory).items():
        count = tensors.pop("count", None)
        if count is not None:
            rows = next(tensor for buffer, tensor in tensors.items() if buffer != "cursor")
            of_each = f"{rows.shape[count.ndim]}{', class by class' if count.ndim else ''}"
            yield f"{name}: filled rows of {of_each}: {' '.join(map(str, count.flatten().tolist()))}"
