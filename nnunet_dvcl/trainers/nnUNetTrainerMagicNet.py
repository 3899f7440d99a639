"""MagicNet: a row of the paper's Table 1."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_dvcl import distributed
from nnunet_dvcl.labels import UNKNOWN
from nnunet_dvcl.losses import blend_cubes
from nnunet_dvcl.losses.class_weighted import counts_by_class, overlaps, soft_dice
from nnunet_dvcl.memory import ClassShares
from nnunet_dvcl.networks import FeatureTap, full_resolution, last_segmentation_layer, unwrap
from nnunet_dvcl.options import Count, Share, Weight, option
from nnunet_dvcl.trainers.base import Panel, Passes, Reach, Step, Term
from nnunet_dvcl.trainers.nnUNetTrainerMT import MTConfig, nnUNetTrainerMT
from nnunet_dvcl.voxels.cubes import CubeGrid, Mixing


class MagicNetConfig(MTConfig):
    """What magic cubes add."""

    cubes_per_axis: option(int, "a whole number of at least 2", ge=2) = 3  # at most; fewer where a patch is small
    location_weight: Weight = 0.1  # of telling where in its patch a cube was
    location_width: Count = 4096  # channels of the hidden layer of the head that tells it
    blending_start: Share = 0.0015  # share of training before pseudo-labels are blended with those of cubes
    distribution_memory: Count = 20  # steps over which the shares of the classes in pseudo-labels are averaged


class nnUNetTrainerMagicNet(nnUNetTrainerMT):
    """Cubes change patches or are seen one by one, and are put together again: MagicNet (Chen et al., CVPR 2023)."""

    config_class: ClassVar[type[MagicNetConfig]] = MagicNetConfig
    config: MagicNetConfig
    passes = Passes(trained=3, forward=0.5)  # patches as they are, mixed, and in cubes
    reaches = {
        "recovered": Reach.of("A", "labeled"),
        "local": Reach.of("A", "labeled"),
        "location": Reach.of("A head_location", "any"),
        "consistency": Reach.of("A", "unlabeled"),
    }
    panels = (Panel("share of cubes located, of pseudo-labels changed by cubes", "share", ("located", "blended")),)
    # the paper's supervised loss is the mean of CE, Dice and the first two terms: nnU-Net's is four times its part
    supervised_scale: ClassVar[float] = 4.0

    def build_companions(self) -> dict[str, nn.Module]:
        last_segmentation_layer(self.network)  # or says that there is none
        configuration = self.configuration_manager
        strides = [math.prod(axis) for axis in zip(*configuration.pool_op_kernel_sizes, strict=True)]
        self.grid = CubeGrid(configuration.patch_size, strides, self.config.cubes_per_axis)
        self.owners = self.grid.owners(self.device)
        encoder = unwrap(self.network).encoder
        self.tap = FeatureTap(self.network, self._do_i_compile(), f"encoder.stages.{len(encoder.stages) - 1}")
        features, width = encoder.output_channels[-1] * math.prod(self.grid.lowest_size), self.config.location_width
        head = nn.Sequential(nn.Linear(features, width), nn.LeakyReLU(), nn.Linear(width, len(self.grid)))
        return super().build_companions() | {"head_location": head}

    def build_memory(self) -> dict[str, nn.Module]:
        return super().build_memory() | {"class_shares": ClassShares(self.labels.num_classes, 1)}

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        if len(self.grid) == 1:
            raise NotImplementedError(
                f"The patch size {list(self.grid.patch_size)} is too small to be cut into cubes that the network can "
                "run on: choose a larger patch_size with nnunet_dvcl configure, or another method."
            )
        super().on_train_start()

    def after_forward(self, step: Step) -> None:
        """Runs the network on mixed patches, and on all cubes, each a patch of its own."""
        super().after_forward(step)
        image = step.views["A"]
        mixing = Mixing.draw(self.owners, len(self.grid), len(image))
        step.kept["recovered"] = mixing.recover(full_resolution(self.forward("A", mixing.mix(image))))
        self.tap.drop()
        cubes = full_resolution(self.forward("A", self.grid.cut(image)))
        step.kept["local"] = self.grid.put_together(cubes)
        step.kept["location"] = self.companions["head_location"](self.tap.pop().flatten(1)).float()

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        labeled, known, config = slice(step.num_labeled), step.target != UNKNOWN, self.config
        rampup = step.rampup(config.rampup_fraction)
        step.record(rampup=rampup)
        recovered = step.kept["recovered"]
        follow = self._dice_loss(step.unlabeled_patches(recovered), self.pseudo_labels(step), step.unlabeled)
        return {
            "recovered": self._term(self._dice_loss(recovered[labeled], step.target, known), 1 / 4),
            "local": self._term(self._dice_loss(step.kept["local"][labeled], step.target, known), 1 / 4),
            "location": self._term(self._location_loss(step), config.location_weight),
            "consistency": self._term(follow, config.consistency_weight * rampup),
        }

    @torch.no_grad()
    def pseudo_labels(self, step: Step) -> Tensor:
        """The teacher's classes of unlabeled patches, blended with those of the student's cubes: [B', *S] int64."""
        teacher = self.teach(self.with_noise(step.unlabeled_patches(step.views["A"])))
        memory, unlabeled = self.memory["class_shares"], step.unlabeled
        own = labels = self.labels.predicted(teacher)
        if step.progress >= self.config.blending_start:
            cubes = step.unlabeled_patches(step.kept["local"])
            labels = self.labels.predicted(blend_cubes(teacher, cubes, own, memory.shares[:, 0]))
        step.record(blended=((labels != own) & unlabeled).sum() / step.num_unlabeled.clamp(min=1))
        counts = counts_by_class(labels.masked_fill(~unlabeled, UNKNOWN)[:, None], self.labels.num_classes)
        decay = min(1 - 1 / self.config.distribution_memory, self.iteration / (self.iteration + 1))
        memory.update(distributed.total(counts), decay)
        return labels

    def _term(self, value: Tensor, weight: float) -> Term:
        return Term(value, self.supervised_scale * weight)

    def _dice_loss(self, logits: Tensor, classes: Tensor, known: Tensor) -> Tensor:
        """1 - Dice of the labels beside background, over the known voxels of all patches of all ranks: [] in [0, 1]."""
        inside = self.labels.inside(self.labels.to_target(classes))
        sums = overlaps(self.labels.foreground(self.labels.channel_probabilities(logits)), inside, known[:, None])
        return 1 - soft_dice(distributed.merge_sums(sums.sum(1))).mean()

    def _location_loss(self, step: Step) -> Tensor:
        """The cross entropy of the place of each cube that is not all padding."""
        logits, number = step.kept["location"], len(self.grid)
        place = torch.arange(number, device=logits.device).repeat(len(logits) // number)
        valid = self.grid.cut(torch.cat((step.labeled_valid, step.valid))[:, None]).flatten(1).any(1)
        count = distributed.mean(valid.sum())
        count = count.where(count > 0, 1)
        step.record(located=((logits.argmax(1) == place) & valid).sum() / count)
        return F.cross_entropy(logits, place, reduction="none").masked_fill(~valid, 0).sum() / count

    def why_zero(self, term: str) -> str:
        return "every cube was padding" if term == "location" else super().why_zero(term)
