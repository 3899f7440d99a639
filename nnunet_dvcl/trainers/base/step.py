"""One training step as a method sees it, and what the base needs to take it apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_dvcl import distributed
from nnunet_dvcl.labels import UNKNOWN, Labels
from nnunet_dvcl.losses import gaussian_rampup
from nnunet_dvcl.networks import full_resolution

Output = Tensor | list[Tensor]
"""What a network returns: with deep supervision a list, full resolution first."""

SUPERVISED_SCALE = 2.0
"""nnU-Net's supervised loss is Dice + CE, twice the papers' (Dice + CE)/2: twice the other terms keep their ratios."""


class Term(NamedTuple):
    """One summand of the total loss: ``weight * value`` is optimized, ``value`` is logged."""

    value: Tensor
    weight: float

    @classmethod
    def scaled(cls, value: Tensor, weight: float, rampup: float = 1.0) -> Term:
        """λ·w(t) as the papers give it, for the scale of nnU-Net's supervised loss: DVCL, Eq. 3."""
        return cls(value, SUPERVISED_SCALE * weight * rampup)


class Reach(NamedTuple):
    """What the gradient of a term reaches, and nothing else; the tests hold each trainer's `reaches` to it."""

    modules: frozenset[str]  # students and companions
    voxels: str  # "labeled", "unlabeled", "any", or a kind that the method's test defines

    @classmethod
    def of(cls, modules: str, voxels: str) -> Reach:
        """``Reach.of("A B head_A head_B", "unlabeled")``"""
        return cls(frozenset(modules.split()), voxels)


@dataclass
class Step:
    """One iteration as a method sees it, labeled patches first, then unlabeled ones.

    The base fills it from top to bottom: what the loaders made, `views` before the students run, `outputs` after.
    """

    image: Tensor  # [B_l + B_u, channels, *S], as the loaders make it
    target: Tensor  # [B_l, *S] int64, the class; -1 where the voxel has the ignore label, or is padding
    valid: Tensor  # [B_u, *S] bool, False where padding was added
    progress: float  # share of all training iterations that is done, in [0, 1)
    labels: Labels  # what the channels of an output mean
    labeled_valid: Tensor | None = None  # [B_l, *S] bool, as `valid`; None: no padding was added
    target_levels: Output | None = None  # nnU-Net's target of the labeled patches, as its loss takes it
    ignored_as_unlabeled: bool = False  # ignored voxels of labeled patches count as unlabeled ones
    views: dict[str, Tensor] = field(default_factory=dict)  # what each student, or a teacher, sees of the images
    outputs: dict[str, Output] = field(default_factory=dict)  # student -> output for its view
    features: dict[str, Tensor] = field(default_factory=dict)  # student -> feature map, [B_l + B_u, F, *S]
    pseudo_labels: dict[str, Tensor] = field(default_factory=dict)  # student -> [B', *S], of its `unlabeled_patches`
    taught_logits: dict[str, Tensor] = field(default_factory=dict)  # student -> its teacher's, [B_l + B_u, C, *S]
    taught_features: dict[str, Tensor] = field(default_factory=dict)  # student -> its teacher's, [B_l + B_u, F, *S]
    kept: dict[str, Tensor] = field(default_factory=dict)  # what a method needs of an earlier hook in a later one
    statistics: dict[str, Tensor | float] = field(default_factory=dict)
    _predicted: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.labeled_valid is None:
            self.labeled_valid = torch.ones_like(self.target, dtype=torch.bool)

    @property
    def logits(self) -> dict[str, Tensor]:
        """Student -> output at full resolution, [B_l + B_u, C, *S] in the dtype of the forward."""
        return {name: full_resolution(output) for name, output in self.outputs.items()}

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
        if not self.ignored_as_unlabeled:
            return self.valid
        return torch.cat(((self.target == UNKNOWN) & self.labeled_valid, self.valid))

    @property
    def present(self) -> Tensor:
        """The voxels of all patches that are labeled or unlabeled, padding left out: [B_l + B_u, *S] bool."""
        labeled = self.labeled_valid if self.ignored_as_unlabeled else self.target != UNKNOWN
        return torch.cat((labeled, self.valid))

    @cached_property
    def num_unlabeled(self) -> Tensor:
        """How many voxels are `unlabeled`, []. On several GPUs the mean over them.

        A sum over a rank's voxels, divided by this, is the mean over all voxels once it is averaged over the ranks.
        """
        return distributed.mean(self.unlabeled.sum())

    def mean_over_unlabeled(self, values: Tensor) -> Tensor:
        """The mean over the `unlabeled` voxels of all ranks of what each has, [B', *S] -> []; 0 where there is none."""
        count = self.num_unlabeled.where(self.num_unlabeled > 0, 1)
        return values.masked_fill(~self.unlabeled, 0.0).sum() / count

    def rampup(self, fraction: float, start: float = 0.0) -> float:
        """w(t) of a weight that is 0 for a share of training, `start`, and then rises over another; 0: at once."""
        return gaussian_rampup(self.progress - start, fraction) if self.progress >= start else 0.0

    def record(self, **statistics: Tensor | float) -> None:
        """Scalars to be averaged over the epoch and logged as ``ssl/<name>``; nan: nothing to tell in this step."""
        self.statistics.update((name, v.detach() if isinstance(v, Tensor) else v) for name, v in statistics.items())


def to_device(target: Output, device: torch.device) -> Output:
    """A target of nnU-Net, which is a list with deep supervision."""
    if isinstance(target, list):
        return [level.to(device, non_blocking=True) for level in target]
    return target.to(device, non_blocking=True)


def patches_of(output: Output, part: slice) -> Output:
    """Some patches of an output or a target, on each level of deep supervision."""
    return [level[part] for level in output] if isinstance(output, (list, tuple)) else output[part]


def to_host(scalars: dict[str, Tensor | float]) -> dict[str, float]:
    """One copy to the host for all scalars of a step."""
    tensors = {name: value for name, value in scalars.items() if isinstance(value, Tensor)}
    on_host = torch.stack([value.float() for value in tensors.values()]).tolist()
    return {**scalars, **dict(zip(tensors, on_host, strict=True))}
