"""Distances to the surface of each label: what they are, on which scale, and where they are not known."""

import math

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dvcl.data import AddSignedDistances, signed_distances
from nnunet_dvcl.labels import SigmoidRegions, SoftmaxLabels

SPACES = [((7, 9), (1.0, 1.0)), ((6, 8), (3.0, 0.5)), ((4, 5, 6), (1.0, 1.0, 1.0)), ((3, 6, 5), (5.0, 0.8, 1.2))]


def naive(inside: np.ndarray, unknown: np.ndarray, spacing) -> np.ndarray:
    """Every voxel against every other, from the definition."""
    places = list(np.ndindex(inside.shape))
    in_mm = {place: [i * mm for i, mm in zip(place, spacing, strict=True)] for place in places}

    def nearest(place, others) -> float:
        return min((math.dist(in_mm[place], in_mm[other]) for other in others), default=math.inf)

    in_label = [p for p in places if inside[p]]
    out_of_it = [p for p in places if not inside[p] and not unknown[p]]
    not_known = [p for p in places if unknown[p]]
    signed = np.full(inside.shape, np.nan)
    for own, other, sign in ((in_label, out_of_it, -1), (out_of_it, in_label, 1)):
        distance = {p: nearest(p, other) for p in own}
        known = {p: d for p, d in distance.items() if d <= nearest(p, not_known) + 1e-9}
        farthest = max(known.values(), default=1.0)
        for p, d in known.items():
            signed[p] = sign * (d / farthest if math.isfinite(farthest) else 1.0)
    return signed


@pytest.mark.parametrize("share_unknown", [0.0, 0.05])
@pytest.mark.parametrize(("space", "spacing"), SPACES)
def test_equals_the_definition(space, spacing, share_unknown):
    rng = np.random.default_rng(0)
    for density in (0.05, 0.3, 0.8):
        unknown = rng.random(space) < share_unknown
        inside = (rng.random((2, *space)) < density) & ~unknown
        middle = tuple(slice(1, -1) for _ in space)
        inside[(0, *middle)] = ~unknown[middle]  # one that is thick
        found = signed_distances(inside, unknown, spacing)
        assert found.dtype == np.float32
        for label, distances in zip(inside, found, strict=True):
            np.testing.assert_allclose(distances, naive(label, unknown, spacing), rtol=1e-6)


@pytest.mark.parametrize(("space", "spacing"), SPACES)
def test_the_sign_is_the_label_and_both_sides_reach_one(space, spacing):
    inside = np.zeros((1, *space), bool)
    inside[(0, *(slice(n // 3, 2 * n // 3 + 1) for n in space))] = True
    (distances,) = signed_distances(inside, np.zeros(space, bool), spacing)
    assert ((distances < 0) == inside[0]).all()
    assert distances.min() == -1
    assert distances.max() == 1


def test_a_single_voxel_is_inside():
    """As thin as a label can be: where the surface is a voxel wide, nothing would be left."""
    inside = np.zeros((1, 5, 5), bool)
    inside[0, 2, 2] = True
    (distances,) = signed_distances(inside, np.zeros((5, 5), bool), (1, 1))
    assert distances[2, 2] == -1
    assert distances[2, 3] == pytest.approx(1 / math.sqrt(8))


def test_a_label_that_is_absent_or_fills_the_patch():
    inside = np.stack([np.zeros((4, 5), bool), np.ones((4, 5), bool)])
    distances = signed_distances(inside, np.zeros((4, 5), bool), (1, 1))
    assert (distances[0] == 1).all()
    assert (distances[1] == -1).all()


def test_thick_slices_count_with_their_thickness():
    """The nearest voxel outside is a slice away in voxels, and four voxels of it in mm."""
    inside = np.ones((1, 3, 9, 9), bool)
    inside[0, 0] = False
    inside[0, :, :, 0] = False
    nothing = np.zeros((3, 9, 9), bool)
    flat = signed_distances(inside, nothing, (1, 1, 1))[0]
    thick = signed_distances(inside, nothing, (4, 1, 1))[0]
    assert flat[2, 4, 8] == flat[2, 4, 2] == -1
    assert thick[2, 4, 8] == -1
    assert thick[2, 4, 2] == pytest.approx(-2 / 8)


def test_what_is_behind_unknown_voxels_is_not_known():
    inside = np.zeros((1, 1, 9), bool)
    inside[0, 0, :2] = True
    unknown = np.zeros((1, 9), bool)
    unknown[0, 5] = True
    distances = signed_distances(inside, unknown, (1, 1))[0, 0]
    np.testing.assert_allclose(distances, [-1, -0.5, 0.5, 1, *[np.nan] * 5])
    absent = signed_distances(np.zeros((1, 1, 9), bool), unknown, (1, 1))
    assert np.isnan(absent).all(), "it may be there, where nobody has looked"


# ---------------------------------------------------------------- the transform


@pytest.mark.parametrize("scales", [None, [[1, 1], [0.5, 0.5]]])
@pytest.mark.parametrize("ignored", [None, 3])
@pytest.mark.parametrize("regions", [False, True])
def test_they_end_the_target_and_are_those_of_the_augmented_patch(regions, ignored, scales):
    labels = SigmoidRegions([[1, 2], 2], [1, 2], ignored) if regions else SoftmaxLabels(3, ignored)
    transforms = nnUNetTrainer.get_training_transforms(
        *((16, 16), (-np.pi, np.pi), scales, (0, 1), False),
        regions=[[1, 2], 2] if regions else None,
        ignore_label=ignored,
    ).transforms
    adding = ComposeTransforms([*transforms, AddSignedDistances(labels, (2.0, 1.0))])
    segmentation = torch.zeros(1, 20, 20, dtype=torch.int16)
    segmentation[:, 4:14, 4:14] = 1
    segmentation[:, 7:10, 7:12] = 2
    if ignored:
        segmentation[:, :3] = ignored
    for seed in range(4):
        np.random.seed(seed)
        torch.manual_seed(seed)
        out = adding(image=torch.randn(1, 20, 20), segmentation=segmentation.clone())
        *levels, distances = out["segmentation"]
        assert [tuple(level.shape[1:]) for level in levels] == [(16, 16), (8, 8)][: len(scales or [0])]
        target = levels[0]
        inside = target[:2].bool() if regions else torch.cat((target == 1, target == 2))
        unknown = torch.zeros_like(inside[0])
        if ignored:
            unknown = target[2].bool() if regions else target[0] == ignored
            assert unknown.any()
        expected = signed_distances(inside.numpy(), unknown.numpy(), (2.0, 1.0))
        np.testing.assert_array_equal(distances.numpy(), expected)
        assert inside.flatten(1).any(1).all()
