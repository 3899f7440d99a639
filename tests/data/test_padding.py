"""The mask of the valid voxels at the end of a labeled target."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dvcl.data import TWINS, make_views, unlabeled_transforms, with_valid_voxels
from nnunet_dvcl.errors import UserError

SCALES = [[1.0, 1.0], [0.5, 0.5]]
OPTIONS = {
    "labels": {},
    "ignore label": {"ignore_label": 3},
    "regions": {"regions": [[1, 2], [2]]},
    "cascade": {"is_cascaded": True, "foreground_labels": [1, 2]},
    "masked image": {"use_mask_for_norm": [True]},
}


def nnunets(size: list[int], scales, **options) -> ComposeTransforms:
    dummy_2d = len(size) == 3
    scales = scales and [[1.0] * dummy_2d + scale for scale in scales]
    axes = tuple(range(len(size)))
    return nnUNetTrainer.get_training_transforms(size, (-np.pi, np.pi), scales, axes, dummy_2d, **options)


def patch(size: list[int], cascaded: bool) -> dict[str, torch.Tensor]:
    """With a margin, of which a corner is padding."""
    larger = [n + 6 * (axis >= len(size) - 2) for axis, n in enumerate(size)]
    torch.manual_seed(0)
    segmentation = torch.randint(0, 3, (1 + cascaded, *larger), dtype=torch.int16)
    segmentation[..., :12, :9] = -1
    return {"image": torch.randn(1, *larger), "segmentation": segmentation}


def seeded(transforms: ComposeTransforms, size: list[int], seed: int, cascaded: bool) -> dict:
    given = patch(size, cascaded)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return transforms(**given)


@pytest.mark.parametrize("scales", [None, SCALES])
@pytest.mark.parametrize("size", [[16, 16], [4, 16, 16]])
@pytest.mark.parametrize("mode", OPTIONS)
def test_the_target_ends_with_what_the_unlabeled_stream_calls_valid(mode, size, scales):
    """What comes before is nnU-Net's own, and so is the image."""
    options, cascaded = OPTIONS[mode], mode == "cascade"
    own = nnunets(size, scales, **options)
    ours = with_valid_voxels(own)
    mask = unlabeled_transforms(with_valid_voxels(nnunets(size, None, **{**options, "regions": None})))
    padded = 0
    for seed in range(4):
        expected, found, unlabeled = (seeded(deepcopy(t), size, seed, cascaded) for t in (own, ours, mask))
        *levels, valid = found["segmentation"]
        assert torch.equal(found["image"], expected["image"])
        for level, of_nnunet in zip(
            levels, expected["segmentation"] if scales else [expected["segmentation"]], strict=True
        ):
            assert level.dtype == of_nnunet.dtype
            assert torch.equal(level, of_nnunet)
        assert valid.dtype == torch.bool
        assert torch.equal(valid, unlabeled["segmentation"] >= 0)
        padded += (~valid).sum()
    assert padded > 0


def test_views_share_it():
    views = make_views(with_valid_voxels(nnunets([16, 16], SCALES)), TWINS)
    found = seeded(views, [16, 16], 0, False)
    assert found["image"].shape == (2, 16, 16)
    *levels, valid = found["segmentation"]
    assert [tuple(level.shape) for level in levels] == [(1, 16, 16), (1, 8, 8)]
    assert valid.shape == (1, 16, 16)
    assert not valid.all()
    assert (levels[0][~valid] == 0).all()


def test_transforms_that_leave_padding_are_refused():
    with pytest.raises(UserError, match="leave padding as it is"):
        with_valid_voxels(ComposeTransforms([]))
