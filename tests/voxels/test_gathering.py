"""Gathering the rows of voxels, and where their gradient goes."""

import itertools
import math

import pytest
import torch

from nnunet_dvcl.tools.footprint import peak_bytes
from nnunet_dvcl.voxels.draws import draw_per_class
from nnunet_dvcl.voxels.gathering import gather_rows, to_dense, with_dense_gradient


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("space", [(7,), (4, 5), (2, 3, 4)])
def test_gathered_rows_are_the_voxels_batch_by_batch(space):
    volume = torch.randn(2, 3, *space, generator=seeded())
    size = math.prod(space)
    index = torch.randint(2 * size, (4, 5), generator=seeded())
    rows = gather_rows(volume, index)
    assert rows.shape == (4, 5, 3)
    for i, j in itertools.product(range(4), range(5)):
        batch, voxel = divmod(int(index[i, j]), size)
        assert rows[i, j].tolist() == volume[batch].flatten(1)[:, voxel].tolist()


def test_gathering_fits_the_flat_order_of_labels_and_masks():
    labels = torch.randint(0, 4, (2, 3, 4, 5), generator=seeded())
    one_hot = torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).float()
    index, mask = draw_per_class(labels.flatten(), 4, 6, seeded())
    rows = gather_rows(one_hot, index)
    assert torch.equal(rows.argmax(-1)[mask], torch.arange(4)[:, None].expand(4, 6)[mask])


def test_gathering_takes_channels_last_volumes_and_empty_indices():
    volume = torch.randn(2, 3, 4, 5, generator=seeded())
    index = torch.arange(40)
    assert torch.equal(gather_rows(volume.to(memory_format=torch.channels_last), index), gather_rows(volume, index))
    assert gather_rows(volume, index[:0]).shape == (0, 3)


@pytest.mark.parametrize("space", [(7,), (4, 5), (2, 3, 4)])
@pytest.mark.parametrize("also_used_whole", [False, True])
def test_the_gradient_reaches_the_voxels_it_was_taken_from(space, also_used_whole):
    """Voxels that are taken twice count twice. A volume with another use gets one dense gradient."""
    leaf = torch.randn(2, 3, *space, generator=seeded(), requires_grad=True, dtype=torch.float64)
    index = torch.randint(2 * math.prod(space), (4, 5), generator=seeded())
    weight = torch.randn(4, 5, 3, generator=seeded(), dtype=torch.float64)

    def gradient(gather) -> torch.Tensor:
        volume = leaf * 1.0
        loss = (gather(volume) * weight).sum() + (volume.square().sum() if also_used_whole else 0.0)
        return torch.autograd.grad(loss, volume)[0]

    found = gradient(lambda volume: gather_rows(volume, index))
    assert found.is_sparse != also_used_whole
    expected = gradient(lambda volume: volume.movedim(1, -1).flatten(0, -2)[index])
    torch.testing.assert_close(to_dense(found), expected)


def test_a_gradient_can_be_made_dense_for_what_is_before():
    leaf = torch.randn(2, 3, 4, requires_grad=True)
    volume = leaf * 2.0
    rows = [gather_rows(with_dense_gradient(volume), torch.tensor(index)) for index in ([1, 6], [6])]
    (gradient,) = torch.autograd.grad(sum(row.sum() for row in rows), volume)
    assert not gradient.is_sparse
    assert gradient.sum(1).tolist() == [[0, 3, 0, 0], [0, 0, 6, 0]]


def test_a_gathered_row_costs_no_gradient_volume():
    volume = torch.randn(1, 8, 64, 64, requires_grad=True)
    twice = volume * 2.0
    rows = gather_rows(twice, torch.tensor([5, 9]))
    held = peak_bytes(lambda: torch.autograd.grad(rows.sum(), twice))
    assert held < volume.nbytes / 10
