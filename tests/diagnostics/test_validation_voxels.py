import pytest
import torch

from nnunet_dvcl.diagnostics.validation_voxels import ValidationVoxels


def forward(image):
    """Logits and features that are the image, voxel by voxel."""
    return image, image * 2


def make(number=200, batch_size=3, patches=7, shape=(4, 5)):
    g = torch.Generator().manual_seed(0)
    images = torch.randn(patches, 3, *shape, generator=g)
    labels = torch.randint(-1, 3, (patches, *shape), generator=g)
    return images, labels, ValidationVoxels(images, labels, number, batch_size)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20])
@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4)])
def test_rows_and_labels_belong_together(batch_size, shape):
    images, labels, voxels = make(60, batch_size, shape=shape)
    all_logits, all_features = voxels.look(forward, torch.device("cpu"))
    assert len(all_features) == len(all_logits) == len(voxels.labels) == 60
    for logits, features, label in zip(all_logits, all_features, voxels.labels, strict=True):
        place = (images * 2 == features.view(1, 3, *[1] * len(shape))).all(1).nonzero()[0]
        assert labels[tuple(place)] == label
        torch.testing.assert_close(logits, features / 2)


def test_padding_is_never_drawn_and_a_wish_for_more_gets_all():
    _, labels, voxels = make(number=10_000)
    assert len(voxels.labels) == (labels >= 0).sum()
    assert voxels.labels.min() == 0


def test_the_draw_is_spread_and_always_the_same():
    _, _, first = make(number=40)
    torch.manual_seed(77)
    _, _, again = make(number=40)
    (_, a), (_, b) = (v.look(forward, torch.device("cpu")) for v in (first, again))
    assert torch.equal(a, b)
    assert all(len(index) for _, index in first._batches)
