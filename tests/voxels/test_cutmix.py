"""CutMix: boxes of one patch in another."""

import pytest
import torch

from nnunet_dvcl.voxels.cutmix import SHARES, CutMix, draw_cutmix

CPU = torch.device("cpu")
SIZES = [(24, 20), (12, 16, 20), (3, 40, 40)]


def naive_mix(volume, box, partner):
    mixed = volume.clone()
    for i in range(len(volume)):
        for place in box[i].nonzero().tolist():
            mixed[(i, ..., *place)] = volume[(int(partner[i]), ..., *place)]
    return mixed


@pytest.mark.parametrize("size", SIZES)
def test_equals_the_loops(size):
    torch.manual_seed(0)
    mixing = draw_cutmix(3, size, 1.0, CPU)
    image = torch.randn(3, 2, *size)
    labels = torch.randint(-1, 4, (3, *size))
    valid = torch.rand(3, *size) < 0.5
    for volume in (image, labels, valid):
        mixed = mixing.mix(volume)
        assert mixed.dtype == volume.dtype
        assert torch.equal(mixed, naive_mix(volume, mixing.box, mixing.partner))


def test_image_label_and_mask_move_together():
    """A voxel that carries its own number as image and as label still does after mixing."""
    torch.manual_seed(0)
    number = torch.arange(4 * 16 * 16).view(4, 16, 16)
    mixing = draw_cutmix(4, (16, 16), 1.0, CPU)
    mixed = mixing.mix(number)
    assert torch.equal(mixing.mix(number[:, None].float())[:, 0].long(), mixed)
    assert torch.equal(mixed != number, mixing.box)


@pytest.mark.parametrize("size", SIZES)
def test_a_box_is_a_box_of_5_to_40_percent(size):
    """In whole voxels, so a little more or less; of one piece, inside of the patch."""
    torch.manual_seed(0)
    box = draw_cutmix(200, size, 1.0, CPU).box
    for one in box:
        places = one.nonzero()
        assert len(places) == (places.amax(0) - places.amin(0) + 1).prod(), "one piece"
    share = box.flatten(1).float().mean(1)
    low, high = SHARES
    tolerance = 1.5 / min(size)
    assert low * (1 - tolerance) - 0.02 < share.min() < 0.1
    assert 0.3 < share.max() < high * (1 + tolerance) + 0.02
    assert share.mean() == pytest.approx((low + high) / 2, abs=0.05)


def test_boxes_reach_every_border_and_corner_and_have_many_shapes():
    torch.manual_seed(0)
    box = draw_cutmix(500, (16, 16), 1.0, CPU).box
    assert box.any(0).all()
    extents = {tuple(one.any(1 - axis).sum().item() for axis in range(2)) for one in box}
    assert any(a > b for a, b in extents)
    assert any(a < b for a, b in extents)


@pytest.mark.parametrize("number", [2, 3, 8])
def test_the_partner_is_always_another_patch_and_each_is_a_partner_once(number):
    torch.manual_seed(0)
    seen = set()
    for _ in range(50):
        partner = draw_cutmix(number, (4, 4), 1.0, CPU).partner.tolist()
        assert all(p != i for i, p in enumerate(partner))
        assert sorted(partner) == list(range(number))
        seen.add(tuple(partner))
    assert len(seen) > 1 or number == 2


def test_a_batch_of_one_stays_as_it_is():
    mixing = draw_cutmix(1, (8, 8), 1.0, CPU)
    volume = torch.randn(1, 2, 8, 8)
    assert torch.equal(mixing.mix(volume), volume)


@pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 0, 0), (0.5, 160, 240), (1.0, 400, 400)])
def test_how_many_patches_get_a_box(probability, least, most):
    torch.manual_seed(0)
    number = int(draw_cutmix(400, (8, 8), probability, CPU).box.flatten(1).any(1).sum())
    assert least <= number <= most


def test_the_source_is_the_patch_as_it_was_before():
    """No box of a box: all are cut from the batch before anything was mixed."""
    volume = torch.tensor([1, 2])[:, None, None].expand(2, 4, 4)
    mixing = CutMix(torch.ones(2, 4, 4, dtype=torch.bool), torch.tensor([1, 0]))
    assert mixing.mix(volume)[:, 0, 0].tolist() == [2, 1]
