"""Patches cut into cubes and put together, cubes that change patches and come back."""

import pytest
import torch

from nnunet_dvcl.voxels.cubes import CubeGrid, Mixing

# patch, strides, cubes per axis -> cubes along each axis, and their size
GRIDS = [
    ((96, 96, 96), (16, 16, 16), 3, (3, 3, 3), (32, 32, 32)),  # the paper's
    ((128, 128, 128), (32, 32, 32), 3, (2, 2, 2), (64, 64, 64)),
    ((20, 320, 256), (1, 32, 32), 3, (3, 3, 3), (7, 128, 96)),  # anisotropic, and three does not divide it
    ((64, 160, 224), (16, 32, 32), 3, (2, 3, 3), (32, 64, 96)),
    ((56, 40), (8, 8), 3, (3, 3), (24, 16)),
    ((24, 24), (8, 8), 3, (3, 2), (8, 16)),  # of a cube of 8 x 8 one voxel would be left
    ((16, 16, 16), (8, 8, 8), 3, (2, 2, 1), (8, 8, 16)),
    ((40, 40), (8, 8), 5, (5, 3), (8, 16)),
    ((16, 8), (8, 8), 3, (1, 1), (16, 8)),  # cannot be cut
]
every_grid = pytest.mark.parametrize(("patch_size", "strides", "cubes", "per_axis", "size"), GRIDS)


def numbered(patch_size, batch=3, channels=2) -> torch.Tensor:
    """A volume in which no two voxels are the same."""
    shape = (batch, channels, *patch_size)
    assert torch.Size(shape).numel() <= 2**24, "float32 has no more whole numbers without a gap"
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


@every_grid
def test_cubes_come_back_where_they_were(patch_size, strides, cubes, per_axis, size):
    grid = CubeGrid(patch_size, strides, cubes)
    assert grid.cubes_per_axis == per_axis
    assert grid.cube_size == size
    assert len(grid) == torch.Size(per_axis).numel()
    volume = numbered(patch_size)
    cut = grid.cut(volume)
    assert cut.shape == (3 * len(grid), 2, *size)
    for k, place in enumerate(grid.places):
        assert torch.equal(cut[len(grid) + k], volume[(1, slice(None), *place)])
    assert torch.equal(grid.put_together(cut), volume)


@every_grid
def test_the_network_can_run_on_a_cube(patch_size, strides, cubes, per_axis, size):
    grid = CubeGrid(patch_size, strides, cubes)
    assert grid.lowest_size == tuple(n // stride for n, stride in zip(size, strides, strict=True))
    assert all(n % stride == 0 for n, stride in zip(size, strides, strict=True))
    assert torch.Size(grid.lowest_size).numel() > 1


@every_grid
def test_a_voxel_belongs_to_one_cube_that_holds_it(patch_size, strides, cubes, per_axis, size):
    grid = CubeGrid(patch_size, strides, cubes)
    owners = grid.owners(torch.device("cpu"))
    marks = torch.arange(len(grid)).view(-1, 1, *[1] * len(size)).expand(-1, 1, *size)
    assert torch.equal(grid.put_together(marks)[0, 0], owners)
    assert set(owners.flatten().tolist()) == set(range(len(grid)))


@every_grid
def test_the_gradient_of_a_voxel_is_its_own(patch_size, strides, cubes, per_axis, size):
    grid = CubeGrid(patch_size, strides, cubes)
    cut = grid.cut(numbered(patch_size)).requires_grad_()
    weights = torch.randn(3, 2, *patch_size)
    (grid.put_together(cut) * weights).sum().backward()
    of_owners = grid.owners(torch.device("cpu"))
    for k, place in enumerate(grid.places):
        own = of_owners[place] == k
        torch.testing.assert_close(cut.grad[k], weights[(0, slice(None), *place)] * own)


@every_grid
def test_mixed_cubes_come_back_and_keep_their_place(patch_size, strides, cubes, per_axis, size):
    grid = CubeGrid(patch_size, strides, cubes)
    owners = grid.owners(torch.device("cpu"))
    torch.manual_seed(0)
    order = torch.rand(len(grid), 3).argsort(1)
    mixing, volume = Mixing(owners, order), numbered(patch_size)
    mixed = mixing.mix(volume)
    for k in range(len(grid)):
        own = owners == k
        for b in range(3):
            assert ((mixed[b] == volume[order[k, b]]) | ~own).all()
    assert torch.equal(mixing.recover(mixed), volume)
    assert torch.equal(mixing.mix(mixing.recover(volume)), volume)
    asked = volume.clone().requires_grad_()
    weights = torch.randn_like(volume)
    (mixing.recover(asked) * weights).sum().backward()
    torch.testing.assert_close(mixing.recover(asked.grad), weights)


def test_each_cube_is_drawn_by_itself():
    grid = CubeGrid((24, 24, 24), (4, 4, 4), 3)
    owners = grid.owners(torch.device("cpu"))
    volume = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 1, 24, 24, 24)
    mixed = Mixing.draw(owners, len(grid), 4).mix(volume)
    sources = torch.stack([mixed[(slice(None), 0, *(x.start for x in place))] for place in grid.places])
    assert (sources.sort(1).values == torch.arange(4.0)).all(), "each cube of each patch is somewhere once"
    assert len({tuple(row) for row in sources.tolist()}) > 5
