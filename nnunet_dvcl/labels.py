"""What probability, pseudo-label and agreement mean: softmax labels or sigmoid regions.

Logits are volumes [B, C, *S] or rows [N, C]; C, the channels of the network's output, is dimension 1 in both. A class
map is int64 in [-1, num_classes); -1 stands where the truth is not known: padding, and the ignore label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_dvcl.losses import voxel_entropy
from nnunet_dvcl.voxels.precision import at_least_float32, wide_dtype

UNKNOWN = -1


class _Labels:
    """What softmax labels and sigmoid regions have in common."""

    num_classes: int
    num_decisions: int  # R, that a voxel makes: for one of the labels, or in and out of each region
    num_options: int  # K, the classes of a decision: the labels, or in and out
    num_foreground: int  # F
    ignore_label: int | None

    def to_target(self, classes: Tensor, like: Tensor | list[Tensor] | None = None) -> Tensor | list[Tensor]:
        """What nnU-Net's loss takes of a class map, downsampled as nnU-Net downsamples labels.

        A voxel whose class is not known has the ignore label; where there is none, it is background.

        Args:
            classes: [B, *S] int64 in [-1, num_classes).
            like: a network's output, whose levels of deep supervision the target gets; None: full resolution.

        Returns:
            [B, 1, *S] with softmax labels; [B, R, *S], and a last channel for the ignore label, with regions. A list of
            these, level by level, where `like` is one. In float32.
        """
        target = self._target(classes).float()
        if not isinstance(like, (list, tuple)):
            return target
        return [F.interpolate(target, level.shape[2:], mode="nearest-exact") for level in like]

    def of_label_map(self, label_map: Tensor) -> Tensor:
        """The class map of a label map of nnU-Net, both [B, *S]."""
        unknown = label_map < 0
        if self.ignore_label is not None:
            unknown |= label_map == self.ignore_label
        return self._classes(label_map).masked_fill(unknown, UNKNOWN)

    def decided(self, classes: Tensor) -> Tensor:
        """Which class of each decision a class map holds, [B, *S] -> [B, R, *S] int64 in [-1, K)."""
        return self.decided_of_target(self._target(classes)).masked_fill((classes == UNKNOWN)[:, None], UNKNOWN)


class SoftmaxLabels(_Labels):
    """Each voxel has one of the labels 0 to C - 1; the network's output goes through a softmax.

    Args:
        num_classes: C.
        ignore_label: the value in nnU-Net's label maps that says nothing about a voxel.
    """

    has_regions = False
    num_decisions = 1

    def __init__(self, num_classes: int, ignore_label: int | None = None):
        self.num_classes = self.num_options = num_classes
        self.width = num_classes
        self.ignore_label = ignore_label

    def probabilities(self, logits: Tensor) -> Tensor:
        """p, [B, width, *S] at least float32: p·q of two voxels is their agreement, in [0, 1] (DVCL, Eq. 11-19)."""
        return logits.softmax(1, dtype=wide_dtype(logits))

    def channel_probabilities(self, logits: Tensor) -> Tensor:
        """What each channel of the output says, [B, C, *S] at least float32, with graph."""
        return self.probabilities(logits)

    def decisions(self, logits: Tensor) -> Tensor:
        """What each voxel decides: the one of C classes. [B, C, 1, *S], sums to 1 over the classes, with graph."""
        return self.probabilities(logits).unsqueeze(2)

    def decision_logits(self, logits: Tensor) -> Tensor:
        """[B, C, 1, *S], whose softmax over the classes is `decisions`; in the dtype of the output."""
        return logits.unsqueeze(2)

    def decided_of_target(self, target: Tensor) -> Tensor:
        """Which class each decision is for in what nnU-Net's loss takes, [B, 1, *S]: int64, -1 where not known."""
        decided = target.long()
        return decided if self.ignore_label is None else decided.masked_fill(decided == self.ignore_label, UNKNOWN)

    def entropy(self, logits: Tensor) -> Tensor:
        """Eq. 4, [B, *S] in nats, between 0 and `max_entropy`."""
        return voxel_entropy(self.probabilities(logits))

    @property
    def max_entropy(self) -> float:
        """log C, in nats."""
        return math.log(self.num_classes)

    @torch.no_grad()
    def class_probabilities(self, logits: Tensor) -> Tensor:
        """[B, num_classes, *S], sums to 1; without graph."""
        return self.probabilities(logits)

    @property
    def num_foreground(self) -> int:
        """F, the labels beside background."""
        return self.num_classes - 1

    def foreground(self, channels: Tensor) -> Tensor:
        """Of [B, C, *S] the channels of the labels beside background: [B, F, *S]."""
        return channels[:, 1:]

    def foreground_of(self, values: Tensor) -> Tensor:
        """Of a value for each class of each decision, [C, 1], those of the labels beside background: [F]."""
        return values[1:, 0]

    def inside(self, target: Tensor) -> Tensor:
        """The voxels of each label beside background in what nnU-Net's loss takes, [B, 1, *S] -> [B, F, *S] bool."""
        labels = torch.arange(1, self.num_classes, device=target.device)
        return target == labels.view(-1, *[1] * (target.ndim - 2))

    @torch.no_grad()
    def predicted(self, logits: Tensor) -> Tensor:
        """The class map of the highest logit, [B, *S]."""
        # on a CPU several times faster than argmax over a dimension that is not the last
        return logits.max(1).indices

    def of_target(self, target: Tensor) -> Tensor:
        """The class map of what nnU-Net's loss takes, [B, 1, *S] -> [B, *S]."""
        return self.of_label_map(target[:, 0])

    def _target(self, classes: Tensor) -> Tensor:
        return classes.masked_fill(classes == UNKNOWN, self.ignore_label or 0)[:, None]

    def _classes(self, label_map: Tensor) -> Tensor:
        return label_map.long()


class SigmoidRegions(_Labels):
    """A voxel lies in any number of R regions, each a channel of the output that goes through a sigmoid.

    Its class is the label that nnU-Net itself paints: of the regions that hold the voxel, the last one's. Classes are
    the labels that can be painted, background first, in ascending order.

    Args:
        regions: nnU-Net's regions, each a label or several.
        regions_class_order: the label that each region paints, in the order of painting.
        ignore_label: the value in nnU-Net's label maps that says nothing about a voxel.
    """

    has_regions = True
    num_options = 2

    def __init__(
        self,
        regions: Sequence[int | Sequence[int]],
        regions_class_order: Sequence[int],
        ignore_label: int | None = None,
    ):
        painted = sorted({0, *regions_class_order})
        self.num_classes = len(painted)
        self.width = 2 * len(regions)
        self.ignore_label = ignore_label
        self._regions = [[region] if isinstance(region, int) else list(region) for region in regions]
        self._class_of_region = [painted.index(label) for label in regions_class_order]
        self._classes_in = [[painted.index(x) for x in region if x in painted] for region in self._regions]

    def probabilities(self, logits: Tensor) -> Tensor:
        """p = concat(s, 1 - s)/√R, [B, width, *S]: p·q of two voxels is the mean agreement over regions, in [0, 1]."""
        return self._in_and_out(logits) / math.sqrt(len(self._regions))

    def channel_probabilities(self, logits: Tensor) -> Tensor:
        """How likely a voxel lies in each region, [B, R, *S] at least float32, with graph."""
        return at_least_float32(logits).sigmoid()

    def decisions(self, logits: Tensor) -> Tensor:
        """What each voxel decides: for each region, in or out. [B, 2, R, *S], sums to 1 over in and out, with graph."""
        return self._in_and_out(logits).unflatten(1, (2, -1))

    def decision_logits(self, logits: Tensor) -> Tensor:
        """[B, 2, R, *S], whose softmax over in and out is `decisions`; in the dtype of the output."""
        return torch.stack((logits, torch.zeros_like(logits)), 1)

    def decided_of_target(self, target: Tensor) -> Tensor:
        """0 where a voxel of what nnU-Net's loss takes is in a region, 1 out, -1 not known: [B, R, *S] int64."""
        inside, ignored = target.bool().tensor_split([len(self._regions)], 1)
        return (~inside).long().masked_fill(ignored.any(1, keepdim=True), UNKNOWN)

    def entropy(self, logits: Tensor) -> Tensor:
        """The mean binary entropy over regions, [B, *S] in nats, between 0 and `max_entropy`."""
        return voxel_entropy(self._in_and_out(logits)) / len(self._regions)

    @property
    def max_entropy(self) -> float:
        """log 2, in nats."""
        return math.log(2)

    @torch.no_grad()
    def class_probabilities(self, logits: Tensor) -> Tensor:
        """[B, num_classes, *S], sums to 1: how likely each class is painted, regions independent; without graph."""
        inside, outside = self._in_and_out(logits).chunk(2, 1)
        likely = torch.zeros_like(inside[:, :1]).repeat_interleave(self.num_classes, 1)
        not_painted_over = torch.ones_like(inside[:, 0])
        for region, painted in reversed(list(enumerate(self._class_of_region))):
            likely[:, painted] += inside[:, region] * not_painted_over
            not_painted_over = outside[:, region] * not_painted_over
        likely[:, 0] += not_painted_over
        return likely

    @property
    def num_decisions(self) -> int:
        """R, each made for itself."""
        return len(self._regions)

    @property
    def num_foreground(self) -> int:
        """F, the regions; none of them is background."""
        return len(self._regions)

    def foreground(self, channels: Tensor) -> Tensor:
        """[B, R, *S], as they are."""
        return channels

    def foreground_of(self, values: Tensor) -> Tensor:
        """Of a value for in and out of each region, [2, R], those for in: [R]."""
        return values[0]

    def inside(self, target: Tensor) -> Tensor:
        """The voxels of each region in what nnU-Net's loss takes, [B, R, *S] and a last channel -> [B, R, *S] bool."""
        return target[:, : len(self._regions)].bool()

    @torch.no_grad()
    def predicted(self, logits: Tensor) -> Tensor:
        """The class map that s > 1/2 paints, [B, *S]."""
        return self._paint(at_least_float32(logits).sigmoid() > 0.5)

    def of_target(self, target: Tensor) -> Tensor:
        """The class map of what nnU-Net's loss takes, [B, R, *S] and a last channel for the ignore label -> [B, *S].

        Exact for every label that nnU-Net can paint; another one gets the class that its regions paint.
        """
        inside, ignored = target.bool().tensor_split([len(self._regions)], 1)
        return self._paint(inside).masked_fill(ignored.any(1), UNKNOWN)

    def _target(self, classes: Tensor) -> Tensor:
        channels = self._classes_in if self.ignore_label is None else [*self._classes_in, [UNKNOWN]]
        return torch.stack([_is_one_of(classes, members) for members in channels], 1)

    def _classes(self, label_map: Tensor) -> Tensor:
        inside = [_is_one_of(label_map, region) for region in self._regions]
        return self._paint(torch.stack(inside, 1))

    def _in_and_out(self, logits: Tensor) -> Tensor:
        """concat(s, 1 - s), [B, 2R, *S]."""
        logits = at_least_float32(logits)
        return torch.cat((logits.sigmoid(), (-logits).sigmoid()), 1)

    def _paint(self, inside: Tensor) -> Tensor:
        """[B, R, *S] bool -> [B, *S] int64."""
        classes = torch.zeros_like(inside[:, 0], dtype=torch.int64)
        for region, painted in zip(inside.unbind(1), self._class_of_region, strict=True):
            classes.masked_fill_(region, painted)
        return classes


def _is_one_of(values: Tensor, members: Sequence[int]) -> Tensor:
    """`torch.isin`, which would have to copy the members to the device."""
    found = torch.zeros_like(values, dtype=torch.bool)
    for member in members:
        found |= values == member
    return found


Labels = SoftmaxLabels | SigmoidRegions


def labels_of(label_manager: Any) -> Labels:
    """The labels of a data set as nnU-Net's ``LabelManager`` knows them."""
    if label_manager.has_regions:
        return SigmoidRegions(
            label_manager.foreground_regions, label_manager.regions_class_order, label_manager.ignore_label
        )
    return SoftmaxLabels(label_manager.num_segmentation_heads, label_manager.ignore_label)
