"""nnU-Net's update of the weights, less the steps whose loss or gradients are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from nnunet_dvcl import distributed

MOST_SKIPPED_IN_A_ROW = 50  # then training stops


def update(loss: Tensor, optimizer: Optimizer, grad_scaler, clip_gradients: Callable[[], Tensor]) -> Tensor:
    """One update as nnU-Net makes it.

    A loss that is not finite changes no weight and nothing in the optimizer, nor do gradients that are not finite.
    Nothing is copied to the host but on a device without a `grad_scaler`; with one it decides, as ever.

    Args:
        loss: [] with a graph.
        optimizer: the one optimizer of all parameters.
        grad_scaler: torch's, or None.
        clip_gradients: returns their norm before, [].

    Returns:
        [] bool: whether loss and gradients were finite, in all processes. With a `grad_scaler` a few steps in which the
        gradients are not are part of its search for a scale.
    """
    finite = distributed.total((~loss.detach().isfinite()).float()) == 0  # all processes skip, or none
    # a loss that is not finite may have finite gradients: now they are nan too
    loss = loss * torch.where(finite, 1.0, math.nan)
    if grad_scaler is None:
        loss.backward()
        finite = finite & clip_gradients().isfinite()
        if finite:
            optimizer.step()
        return finite
    scale = _scale(grad_scaler, loss.device)
    grad_scaler.scale(loss).backward()
    grad_scaler.unscale_(optimizer)
    norm = clip_gradients()
    grad_scaler.step(optimizer)
    grad_scaler.update()
    # it halved its scale, but no scale makes this loss finite, and after enough of that no gradient is left
    grad_scaler.update(_scale(grad_scaler, loss.device).where(finite, scale))
    return finite & norm.isfinite()


def _scale(grad_scaler, device: torch.device) -> Tensor:
    """The present scale, on the device: `get_scale` would wait for it."""
    return grad_scaler.scale(torch.ones((), device=device))


@dataclass
class SkippedSteps:
    """The steps whose loss or gradients were not finite."""

    in_a_row: int = 0
    not_finite: set[str] = field(default_factory=set)  # terms of the loss, and gradients, in this epoch
    cases: set[str] = field(default_factory=set)  # of these steps in this epoch

    def count(self, skipped: bool, losses: dict[str, float], batches: Sequence[dict]) -> None:
        """One step more, its losses by their names, and what the loaders gave for it."""
        if not skipped:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        terms = {name for name, loss in losses.items() if not math.isfinite(loss)}
        alone = distributed.world_size() == 1
        self.cases |= _suspects(batches)
        self.not_finite |= terms or {"gradients" if alone else "gradients, or the loss of another process"}

    def reason(self) -> str:
        if self.not_finite == {"gradients"}:
            return "gradients were not finite"
        return f"the loss was not finite: {self.names()}"

    def forget_epoch(self) -> None:
        self.not_finite.clear()
        self.cases.clear()

    def case_names(self) -> str:
        """The first of them."""
        shown = sorted(self.cases)[:10]
        return ", ".join(shown) + (f" and {len(self.cases) - 10} more" if len(self.cases) > 10 else "")

    def names(self) -> str:
        return ", ".join(sorted(self.not_finite))


def _suspects(batches: Sequence[dict]) -> set[str]:
    """Cases with an image that is not finite; where there is none, all that took part."""
    images = [pair for batch in batches for pair in zip(batch["keys"], batch["data"], strict=True)]
    return {key for key, image in images if not image.isfinite().all()} or {key for key, _ in images}
