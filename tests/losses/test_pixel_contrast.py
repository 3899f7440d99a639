"""Contrast of voxels by their classes, against a memory of each class."""

import pytest
import torch
from naive_contrast import pull, rows

from nnunet_dvcl.losses import pixel_contrast


def _naive(anchors, anchor_mask, keys, key_mask, temperature):
    losses = []
    for c in range(len(keys)):
        positives = [k for k, filled in zip(keys[c], key_mask[c], strict=True) if filled]
        others = [
            k for o in range(len(keys)) if o != c for k, filled in zip(keys[o], key_mask[o], strict=True) if filled
        ]
        if positives and others:
            losses += [
                sum(pull(a, p, others, temperature) for p in positives) / len(positives)
                for a, drawn in zip(anchors[c], anchor_mask[c], strict=True)
                if drawn
            ]
    return torch.stack(losses).mean() if losses else torch.zeros(())


def _given(c, m=4, p=5):
    some = torch.Generator().manual_seed(3)
    masks = torch.rand(c, m, generator=some) < 0.7, torch.rand(c, p, generator=some) < 0.7
    masks[0][:, 0] = masks[1][:, 0] = True
    return rows(c, m, 3), masks[0], rows(c, p, 3, seed=1), masks[1]


@pytest.mark.parametrize("temperature", [1.0, 0.07])
@pytest.mark.parametrize("c", [2, 3, 14])
def test_equals_the_loops(c, temperature):
    given = _given(c)
    torch.testing.assert_close(pixel_contrast(*given, temperature), _naive(*given, temperature))


@pytest.mark.parametrize("part", [1, 3])
def test_a_class_that_lacks_anchors_or_keys_adds_nothing(part):
    given = _given(4)
    given[part][2] = False
    loss = pixel_contrast(*given)
    assert loss.isfinite()
    torch.testing.assert_close(loss, _naive(*given, 0.07))


def test_gradient_flows_to_the_anchors_alone():
    anchors, anchor_mask, keys, key_mask = _given(3)
    anchors.requires_grad_(), keys.requires_grad_()
    pixel_contrast(anchors, anchor_mask, keys, key_mask).backward()
    assert keys.grad is None
    assert torch.equal(anchors.grad.abs().sum(-1) > 0, anchor_mask)


@pytest.mark.parametrize("filled", [0, 1])
def test_nothing_to_compare_is_a_zero_with_a_graph(filled):
    """No key at all, or keys of one class."""
    anchors, anchor_mask, keys, key_mask = _given(3)
    anchors.requires_grad_()
    key_mask[filled:] = False
    loss = pixel_contrast(anchors, anchor_mask, keys, key_mask)
    loss.backward()
    assert loss == 0
    assert torch.equal(anchors.grad, torch.zeros_like(anchors))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_change_nothing(dtype):
    anchors, anchor_mask, keys, key_mask = _given(3)
    anchors, keys = (1000 * anchors).to(dtype), keys.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = pixel_contrast(anchors, anchor_mask, keys, key_mask)
    assert inside.dtype == torch.float32
    wide = pixel_contrast(anchors.double(), anchor_mask, keys.double(), key_mask)
    torch.testing.assert_close(inside.double(), wide, rtol=1e-4, atol=1e-5)
