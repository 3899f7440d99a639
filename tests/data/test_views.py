import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dvcl.data import TWINS, WEAK_STRONG, View, make_views


def twins(composed):
    return make_views(composed, TWINS)


def transforms(patch_size, dummy_2d=False, use_mask_for_norm=None, scales=None):
    return nnUNetTrainer.get_training_transforms(
        patch_size,
        (-np.pi, np.pi),
        scales,
        tuple(range(len(patch_size))),
        dummy_2d,
        use_mask_for_norm=use_mask_for_norm,
    )


def larger(patch, dummy_2d=False):
    """The patch that augmentation crops from."""
    return [size if dummy_2d and axis == 0 else size + 4 for axis, size in enumerate(patch)]


def sample(patch_size, channels=2):
    """The image repeats the segmentation, so that geometry can be read off both."""
    torch.manual_seed(0)
    segmentation = torch.randint(-1, 3, (1, *patch_size), dtype=torch.int16)
    return {"image": segmentation.float().repeat(channels, *[1] * len(patch_size)), "segmentation": segmentation}


def is_random(transform) -> bool:
    """A RandomTransform, as nnU-Net lists it or for each view."""
    return any(isinstance(t, RandomTransform) for t in (transform, getattr(transform, "transform", None)))


def only_geometry(composed, number=7):
    """Without the random intensity transforms."""
    kept = [transform for transform in composed.transforms if not is_random(transform)]
    assert len(kept) == len(composed.transforms) - number
    return ComposeTransforms(kept)


@pytest.mark.parametrize(("patch", "dummy_2d"), [([16, 16], False), ([16, 16, 16], False), ([8, 16, 16], True)])
def test_both_views_have_one_geometry_and_own_intensities(patch, dummy_2d):
    views = twins(transforms(patch, dummy_2d))
    differ = 0
    for seed in range(8):
        np.random.seed(seed)
        torch.manual_seed(seed)
        out = views(**sample(larger(patch, dummy_2d)))
        assert out["image"].shape == (4, *patch)
        assert out["segmentation"].shape == (1, *patch)
        a, b = out["image"].chunk(2)
        differ += not torch.allclose(a, b)
    assert differ >= 6, "seven intensity transforms, each with its own probability"

    same = only_geometry(twins(transforms(patch, dummy_2d)))
    for _ in range(8):
        a, b = same(**sample(larger(patch, dummy_2d)))["image"].chunk(2)
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_one_view_is_what_nnunet_makes():
    """Without random intensities, view A and the segmentation are those of nnU-Net's own transforms."""
    patch = [16, 16]
    outputs = []
    for wrap in (lambda t: t, twins):
        composed = only_geometry(wrap(transforms(patch)))
        np.random.seed(1)
        torch.manual_seed(1)
        outputs.append(composed(**sample([20, 20])))
    torch.testing.assert_close(outputs[1]["image"][:2], outputs[0]["image"])
    torch.testing.assert_close(outputs[1]["segmentation"], outputs[0]["segmentation"])


def test_each_view_is_masked_where_nnunet_masks():
    views = twins(transforms([16, 16], use_mask_for_norm=[True, False]))
    keep = [t for t in views.transforms if "RemoveLabel" not in type(t).__name__]
    data = sample([20, 20])
    data["image"] += 5  # so that 0 is a masked voxel
    for t in keep:
        data = t(**data)
    outside = data["segmentation"][0] < 0
    assert outside.any()
    for masked, free in (data["image"][:2], data["image"][2:]):
        assert (masked[outside] == 0).all()
        assert (free[outside] != 0).any()


def test_deep_supervision_gets_its_targets():
    out = twins(transforms([16, 16], scales=[[1, 1], [0.5, 0.5]]))(**sample([20, 20]))
    assert [tuple(level.shape) for level in out["segmentation"]] == [(1, 16, 16), (1, 8, 8)]


@pytest.mark.parametrize("patch", [[16, 16], [16, 16, 16]])
def test_both_views_end_with_the_same_previous_stage(patch):
    """The previous stage has the labels of the segmentation, and is augmented once for both."""
    cascade = nnUNetTrainer.get_training_transforms(
        patch, (-np.pi, np.pi), None, (0, 1), False, is_cascaded=True, foreground_labels=[1, 2]
    )
    augmented, differ = 0, 0
    for seed in range(12):
        data = sample(larger(patch))
        data["segmentation"] = data["segmentation"].repeat(2, *[1] * len(patch))
        np.random.seed(seed)
        torch.manual_seed(seed)
        out = twins(cascade)(**data)
        assert out["segmentation"].shape == (1, *patch)
        (a, a_last), (b, b_last) = (view.split(2) for view in out["image"].chunk(2))
        assert a_last.shape == (2, *patch)
        assert torch.equal(a_last, b_last)
        assert set(a_last.unique().tolist()) <= {0, 1}
        augmented += not torch.equal(a_last[0], (out["segmentation"][0] == 1).float())
        differ += not torch.allclose(a, b)
    assert differ >= 8
    assert 0 < augmented < 12


def test_a_view_of_a_cascade_is_what_nnunet_makes():
    patch, outputs = [16, 16], []
    for wrap in (lambda t: t, twins):
        cascade = nnUNetTrainer.get_training_transforms(
            patch, (-np.pi, np.pi), [[1, 1], [0.5, 0.5]], (0, 1), False, is_cascaded=True, foreground_labels=[1, 2]
        )
        kept = [transform for transform in wrap(cascade).transforms if not is_random(transform)]
        data = sample([20, 20])
        data["segmentation"] = torch.cat((data["segmentation"], data["segmentation"].flip(1)))
        np.random.seed(1)
        torch.manual_seed(1)
        outputs.append(ComposeTransforms(kept)(**data))
    expected, ours = outputs
    for view in ours["image"].chunk(2):
        torch.testing.assert_close(view, expected["image"])
    for level, same in zip(ours["segmentation"], expected["segmentation"], strict=True):
        torch.testing.assert_close(level, same)


@pytest.mark.parametrize("cascaded", [False, True])
def test_a_weak_view_has_the_geometry_alone(cascaded):
    """The image repeats the segmentation: interpolated in between, the same in each channel. The strong view is not."""
    options = {"is_cascaded": True, "foreground_labels": [1, 2]} if cascaded else {}
    moved, differ = nnUNetTrainer.get_training_transforms([16, 16], (-np.pi, np.pi), None, (0, 1), False, **options), 0
    views = make_views(moved, WEAK_STRONG)
    for seed in range(8):
        data = sample([20, 20])
        data["segmentation"] = data["segmentation"].repeat(2 if cascaded else 1, 1, 1)
        np.random.seed(seed)
        torch.manual_seed(seed)
        out = views(**data)
        weak, strong = out["image"].chunk(2)
        assert weak.shape == strong.shape == (4 if cascaded else 2, 16, 16)
        assert torch.equal(weak[0], weak[1])
        assert -1 <= weak[0].min() < weak[0].max() <= 2
        labels = out["segmentation"][0]
        assert weak[0][labels == 2].mean() > weak[0][labels == 0].mean() + 1
        assert strong[0][labels == 2].mean() > strong[0][labels == 0].mean()
        assert torch.equal(weak[2:], strong[2:])
        differ += not torch.allclose(weak[:2], strong[:2])
    assert differ >= 6


def test_a_weak_view_is_masked_too():
    views = make_views(transforms([16, 16], use_mask_for_norm=[True, False]), WEAK_STRONG)
    data = sample([20, 20])
    data["image"] += 5
    for t in (t for t in views.transforms if "RemoveLabel" not in type(t).__name__):
        data = t(**data)
    outside = data["segmentation"][0] < 0
    assert outside.any()
    for masked in (data["image"][0], data["image"][2]):
        assert (masked[outside] == 0).all()


def test_any_number_of_views():
    out = make_views(transforms([16, 16]), [View.WEAK, View.STRONG, View.WEAK])(**sample([20, 20]))
    first, _, last = out["image"].chunk(3)
    assert torch.equal(first, last)
