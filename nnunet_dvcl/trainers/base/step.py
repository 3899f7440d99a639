"""One training step as a method sees it, and what the base needs to take it apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_dvcl import distributed
from nnunet_dvcl.labels import UNKNOWN, Labels


class Term(NamedTuple):
    """One summand of the total loss: ``weight * value`` is optimized, ``value`` is logged."""

    value: Tensor
    weight: float


@dataclass
class Step:
    """One iteration as a method sees it: images and each student's output, labeled patches first, then unlabeled."""

    image: Tensor  # [B_l + B_u, channels, *S], as A sees it
    logits: dict[str, Tensor]  # student -> [B_l + B_u, C, *S] at full resolution, in the dtype of the forward
    target: Tensor  # [B_l, *S] int64, the class; -1 where the voxel has the ignore label
    valid: Tensor  # [B_u, *S] bool, False where padding was added
    progress: float  # share of all training iterations that is done, in [0, 1)
    labels: Labels  # what the channels of the logits mean
    ignored_as_unlabeled: bool = False  # ignored voxels of labeled patches count as unlabeled ones
    features: dict[str, Tensor] = field(default_factory=dict)  # student -> last features, where a method taps them
    statistics: dict[str, Tensor | float] = field(default_factory=dict)
    _predicted: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_labeled(self) -> int:
        """B_l."""
        return len(self.target)

    def predicted(self, name: str) -> Tensor:
        """The class that a student predicts, [B_l + B_u, *S] int64; computed once a step."""
        if name not in self._predicted:
            self._predicted[name] = self.labels.predicted(self.logits[name])
        return self._predicted[name]

    def unlabeled_patches(self, volume: Tensor) -> Tensor:
        """The patches of [B_l + B_u, ...] that may hold unlabeled voxels, as a view: [B', ...].

        Those of the unlabeled stream; where ignored voxels count as unlabeled ones, all.
        """
        return volume if self.ignored_as_unlabeled else volume[self.num_labeled :]

    @property
    def unlabeled_offset(self) -> int:
        """The place of the first voxel of `unlabeled_patches` among all voxels, batch first."""
        return 0 if self.ignored_as_unlabeled else self.target.numel()

    @property
    def unlabeled(self) -> Tensor:
        """The unlabeled voxels of `unlabeled_patches`, padding left out: [B', *S] bool."""
        return torch.cat((self.target == UNKNOWN, self.valid)) if self.ignored_as_unlabeled else self.valid

    @cached_property
    def num_unlabeled(self) -> Tensor:
        """How many voxels are `unlabeled`, []. On several GPUs the mean over them.

        A sum over a rank's voxels, divided by this, is the mean over all voxels once it is averaged over the ranks.
        """
        return distributed.mean(self.unlabeled.sum())

    def record(self, **statistics: Tensor | float) -> None:
        """Scalars to be averaged over the epoch and logged as ``ssl/<name>``; nan: nothing to tell in this step."""
        self.statistics.update((name, v.detach() if isinstance(v, Tensor) else v) for name, v in statistics.items())


def to_device(target: Tensor | list[Tensor], device: torch.device) -> Tensor | list[Tensor]:
    """A target of nnU-Net, which is a list with deep supervision."""
    if isinstance(target, list):
        return [level.to(device, non_blocking=True) for level in target]
    return target.to(device, non_blocking=True)


def labeled_part(output: Tensor | list[Tensor], num_labeled: int) -> Tensor | list[Tensor]:
    """The labeled part of an output, on each level of deep supervision."""
    if isinstance(output, (list, tuple)):
        return [level[:num_labeled] for level in output]
    return output[:num_labeled]


def to_host(scalars: dict[str, Tensor | float]) -> dict[str, float]:
    """One copy to the host for all scalars of a step."""
    tensors = {name: value for name, value in scalars.items() if isinstance(value, Tensor)}
    on_host = torch.stack([value.float() for value in tensors.values()]).tolist()
    return {**scalars, **dict(zip(tensors, on_host, strict=True))}
