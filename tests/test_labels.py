"""What probability, pseudo-label and agreement mean, against loops and against nnU-Net's own LabelManager."""

import math

import pytest
import torch
from naive_pseudo_labels import naive_entropy
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunet_dvcl.labels import SigmoidRegions, SoftmaxLabels, labels_of

# dataset.json's "labels" and "regions_class_order"
NESTED = ({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}, [1, 2, 3])
OVERLAPPING = ({"background": 0, "a": [1, 2, 4], "b": [3, 4], "c": 5, "d": [2, 5]}, [4, 1, 5, 1])  # label 1 twice
REGIONS = [NESTED, OVERLAPPING]


def of_manager(manager: LabelManager) -> SigmoidRegions:
    return SigmoidRegions(manager.foreground_regions, manager.regions_class_order, manager.ignore_label)


def logits_of(channels: int, *space: int, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, channels, *space, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def rows_of(volume: Tensor) -> list[list[float]]:
    return volume.movedim(1, -1).flatten(0, -2).tolist()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def classes(label_map: Tensor, order: list[int]) -> Tensor:
    """A painted label map with the labels renamed to 0, 1, 2, ..."""
    painted = sorted({0, *order})
    return torch.tensor([painted.index(label) for label in label_map.flatten().tolist()]).view(label_map.shape)


# --------------------------------------------------------------------------- regions


@pytest.mark.parametrize(("labels", "order"), REGIONS)
@pytest.mark.parametrize("space", [(7, 6), (3, 4, 5), ()])
def test_agreement_is_the_mean_over_regions(labels, order, space):
    regions = of_manager(LabelManager(labels, order))
    logits = logits_of(len(order), *space, batch=4)
    p = regions.probabilities(logits)
    assert p.shape == (4, regions.width, *space)
    rows, vectors = rows_of(logits), p.movedim(1, -1).flatten(0, -2)
    agreement = vectors @ vectors.T
    for i, x in enumerate(rows[:12]):
        for j, y in enumerate(rows[:12]):
            same = [sigmoid(a) * sigmoid(b) + (1 - sigmoid(a)) * (1 - sigmoid(b)) for a, b in zip(x, y, strict=True)]
            assert agreement[i, j].item() == pytest.approx(sum(same) / len(same))
    assert agreement.min() >= 0
    assert agreement.max() <= 1 + 1e-12


def test_certain_voxels_agree_fully_or_not_at_all():
    regions = of_manager(LabelManager(*NESTED))
    p = regions.probabilities(torch.tensor([[90.0, 90, -90], [90, 90, -90], [-90, -90, 90]]))
    torch.testing.assert_close(p @ p.T, torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]))


@pytest.mark.parametrize(("labels", "order"), REGIONS)
@pytest.mark.parametrize("space", [(7, 6), (3, 4, 5), ()])
def test_entropy_is_the_mean_binary_entropy(labels, order, space):
    regions = of_manager(LabelManager(labels, order))
    logits = logits_of(len(order), *space)
    expected = [sum(naive_entropy([sigmoid(x), 1 - sigmoid(x)]) for x in row) / len(order) for row in rows_of(logits)]
    entropy = regions.entropy(logits)
    assert entropy.shape == (2, *space)
    assert entropy.flatten().tolist() == pytest.approx(expected)
    assert entropy.max() <= math.log(2)
    assert regions.entropy(torch.zeros(1, len(order))).item() == pytest.approx(math.log(2))
    assert regions.entropy(torch.full((1, len(order)), 200.0)) == 0


@pytest.mark.parametrize(("labels", "order"), REGIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_predicted_is_what_nnunet_paints(labels, order, dtype):
    manager = LabelManager(labels, order)
    regions = of_manager(manager)
    logits = logits_of(len(order), 5, 6, 7).to(dtype)
    logits[:, :, :2] *= 1e-9  # just about 1/2
    predicted = regions.predicted(logits)
    for patch, expected in zip(logits, predicted, strict=True):
        assert torch.equal(expected, classes(manager.convert_logits_to_segmentation(patch), order))
    assert predicted.dtype == torch.int64
    assert set(predicted.unique().tolist()) == set(range(regions.num_classes))


@pytest.mark.parametrize(("labels", "order"), REGIONS)
@pytest.mark.parametrize("with_ignore", [False, True])
def test_the_class_map_of_a_target_is_painted_by_nnunet(labels, order, with_ignore):
    """From the channels that nnU-Net's transforms make of a label map, and from the label map itself."""
    from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

    ignore = int(max(LabelManager(labels, order).all_labels)) + 1
    manager = LabelManager(labels | {"ignore": ignore} if with_ignore else labels, order)
    regions = of_manager(manager)
    label_map = torch.randint(0, ignore + with_ignore, (3, 6, 7), generator=torch.Generator().manual_seed(0))
    channels = [*manager.foreground_regions, *([ignore] if with_ignore else [])]
    to_regions = ConvertSegmentationToRegionsTransform(channels)
    target = torch.stack([to_regions(segmentation=patch[None].short())["segmentation"] for patch in label_map])
    assert target.shape[1] == len(order) + with_ignore

    found = regions.of_target(target)
    for patch, channels, class_map in zip(label_map, target, found, strict=True):
        painted = classes(manager.convert_probabilities_to_segmentation(channels[: len(order)].float()), order)
        assert torch.equal(class_map, torch.where(patch == ignore, -1, painted))
    assert (found == -1).any() == with_ignore
    assert torch.equal(found, regions.of_target(target.float())), "whatever the dtype"

    label_map[0, :2] = -1
    expected = torch.where(label_map < 0, -1, found)
    assert torch.equal(regions.of_label_map(label_map), expected)


def test_labels_that_can_be_painted_stay_themselves():
    regions = of_manager(LabelManager(*NESTED))
    assert regions.of_label_map(torch.arange(4)[None]).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(("labels", "order"), REGIONS)
def test_class_probabilities_sum_over_all_ways_to_paint(labels, order):
    regions = of_manager(LabelManager(labels, order))
    logits = logits_of(len(order), 3, 4)
    painted, expected = sorted({0, *order}), []
    for row in rows_of(logits):
        likely = [0.0] * regions.num_classes
        for pattern in range(2 ** len(order)):
            label, chance = 0, 1.0
            for region, x in enumerate(row):
                inside = bool(pattern >> region & 1)
                chance *= sigmoid(x) if inside else 1 - sigmoid(x)
                label = order[region] if inside else label
            likely[painted.index(label)] += chance
        expected.append(likely)
    found = regions.class_probabilities(logits.requires_grad_())
    assert not found.requires_grad
    torch.testing.assert_close(found.movedim(1, -1).flatten(0, -2), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]))


# --------------------------------------------------------------------------- labels


@pytest.mark.parametrize("space", [(7, 6), (3, 4, 5), ()])
def test_softmax_labels(space):
    labels, logits = SoftmaxLabels(4), logits_of(4, *space)
    assert labels.width == labels.num_classes == 4
    p = labels.probabilities(logits)
    torch.testing.assert_close(p, logits.exp() / logits.exp().sum(1, keepdim=True))
    assert torch.equal(labels.class_probabilities(logits), p)
    assert labels.entropy(logits).flatten().tolist() == pytest.approx([naive_entropy(row) for row in rows_of(p)])
    assert torch.equal(labels.predicted(logits), logits.argmax(1))
    vectors = p.movedim(1, -1).flatten(0, -2)
    assert 0 <= (vectors @ vectors.T).min() <= (vectors @ vectors.T).max() <= 1


@pytest.mark.parametrize(("ignore_label", "expected"), [(None, [-1, 0, 1, 2, 3]), (3, [-1, 0, 1, 2, -1])])
def test_the_ignore_label_and_padding_are_unknown(ignore_label, expected):
    labels, label_map = SoftmaxLabels(3, ignore_label), torch.arange(-1, 4, dtype=torch.int16)[None]
    assert labels.of_label_map(label_map).tolist() == [expected]
    assert labels.of_target(label_map[:, None]).tolist() == [expected]
    assert labels.of_target(label_map[:, None]).dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("labels", [SoftmaxLabels(3), SigmoidRegions([(1, 2, 3), (2, 3), 3], [1, 2, 3])])
def test_half_precision_is_computed_in_float32(labels, dtype):
    logits = logits_of(3, 5).to(dtype)
    for function in (labels.probabilities, labels.entropy, labels.class_probabilities):
        assert function(logits).dtype == torch.float32
        assert torch.equal(function(logits), function(logits.float()))


@pytest.mark.parametrize("labels", [SoftmaxLabels(3), SigmoidRegions([(1, 2, 3), (2, 3), 3], [1, 2, 3])])
def test_channel_probabilities_are_unscaled_and_have_a_graph(labels):
    logits = logits_of(3, 4, 5).requires_grad_()
    found = labels.channel_probabilities(logits)
    rows = [[sigmoid(x) for x in row] if labels.has_regions else softmax(row) for row in rows_of(logits)]
    torch.testing.assert_close(found.movedim(1, -1).flatten(0, -2), torch.tensor(rows, dtype=torch.float64))
    found.square().sum().backward()
    assert logits.grad.abs().sum() > 0
    assert labels.channel_probabilities(logits.half()).dtype == torch.float32


@pytest.mark.parametrize("labels", [SoftmaxLabels(4), SigmoidRegions([(1, 2, 3), (2, 3), 3, 1], [1, 2, 3, 1])])
def test_the_entropy_of_the_unsure_is_the_highest(labels):
    assert labels.entropy(torch.zeros(1, 4, 1)).item() == pytest.approx(labels.max_entropy)
    assert labels.entropy(logits_of(4, 50)).max() <= labels.max_entropy


# --------------------------------------------------------------------------- targets of nnU-Net's loss


def softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(x) for x in row]
    return [x / sum(exponentials) for x in exponentials]


@pytest.mark.parametrize("scales", [None, [[1, 1], [0.5, 0.5], [0.25, 0.5]]])
@pytest.mark.parametrize("with_ignore", [False, True])
@pytest.mark.parametrize("labels", [({"background": 0, "a": 1, "b": 2}, None), NESTED])
def test_a_target_is_what_nnunets_own_transforms_make(labels, with_ignore, scales):
    """Of the label map that the classes stand for: its channels, on each level of deep supervision."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    names, order = labels
    ignore = 1 + int(max(LabelManager(*labels).all_labels))
    manager = LabelManager(names | {"ignore": ignore} if with_ignore else names, order)
    ours = labels_of(manager)
    label_map = torch.randint(0, ignore + with_ignore, (2, 8, 12), generator=torch.Generator().manual_seed(0))
    transforms = nnUNetTrainer.get_validation_transforms(
        scales, regions=manager.foreground_regions if order else None, ignore_label=manager.ignore_label
    )
    of_patches = [
        transforms(image=torch.zeros(1, 8, 12), segmentation=patch[None].short())["segmentation"] for patch in label_map
    ]
    levels = (
        [torch.stack(level).float() for level in zip(*of_patches, strict=True)] if scales else torch.stack(of_patches)
    )
    like = [torch.zeros_like(level) for level in levels] if scales else torch.zeros(2, 3, 8, 12)
    found = ours.to_target(ours.of_label_map(label_map), like)
    for level, expected in zip(found, levels, strict=True) if scales else [(found, levels.float())]:
        assert torch.equal(level, expected)
        assert torch.equal(level.round(), level)
    target = found[0] if scales else found
    assert torch.equal(ours.of_target(target), ours.of_label_map(label_map))


@pytest.mark.parametrize("labels", [SoftmaxLabels(3), SigmoidRegions([(1, 2), 2], [1, 2])])
def test_unknown_is_background_where_nothing_is_ignored(labels):
    classes = torch.tensor([[-1, 0, 2]])
    assert torch.equal(labels.to_target(classes)[..., 0], labels.to_target(classes)[..., 1])
    assert labels.of_target(labels.to_target(classes)).tolist() == [[0, 0, 2]]


# --------------------------------------------------------------------------- decisions


@pytest.mark.parametrize("with_ignore", [True, False])
@pytest.mark.parametrize("labels", [*REGIONS, None])
def test_what_is_decided_and_how_likely_it_is(labels, with_ignore):
    """Each of R decisions is for one of K classes: of the labels, or in and out of each region."""
    given = SoftmaxLabels(4, 4 if with_ignore else None)
    if labels is not None:
        names = labels[0] | ({"ignore": 1 + max(labels[1])} if with_ignore else {})
        given = of_manager(LabelManager(names, labels[1]))
    channels = 4 if labels is None else len(labels[1])
    logits = logits_of(channels, 3, 4)
    decisions = given.decisions(logits)
    assert decisions.shape == (2, given.num_options, given.num_decisions, 3, 4)
    torch.testing.assert_close(given.decision_logits(logits).softmax(1), decisions)

    classes = torch.randint(-1, given.num_classes, (2, 3, 4))
    classes[0, 0, 0] = -1  # of 24 drawn ones none need be
    decided = given.decided(classes)
    assert decided.shape == (2, given.num_decisions, 3, 4)
    target = given.to_target(classes)
    of_target = given.decided_of_target(target)
    assert torch.equal(decided, of_target.masked_fill((classes < 0)[:, None], -1))
    assert bool((of_target < 0).any()) == with_ignore
    inside = given.inside(target)
    for r in range(given.num_decisions):
        if labels is None:
            assert torch.equal(decided[:, 0], classes)
        else:
            assert torch.equal(decided[:, r] == 0, inside[:, r] & (classes >= 0))
    values = torch.arange(given.num_options * given.num_decisions).view(given.num_options, given.num_decisions)
    expected = values[1:, 0] if labels is None else values[0]
    assert torch.equal(given.foreground_of(values), expected)
    assert len(given.foreground_of(values)) == given.num_foreground
