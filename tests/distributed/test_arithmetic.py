"""`nnunet_dvcl.distributed` on two ranks, and on one."""

import pytest
import torch
from jobs import CLASSES

from nnunet_dvcl import distributed


@pytest.fixture(params=[0, 1])
def of_rank(results, request):
    return request.param, results.two[request.param]["arithmetic"]


def test_sums_means_and_gathered_values(of_rank):
    rank, found = of_rank
    assert found["untouched"].tolist() == [rank + 1, 10]
    assert found["total"].tolist() == [3, 20]
    assert found["mean"].tolist() == [1.5, 10]
    assert found["gather"].tolist() == [[1, 10], [2, 10]]
    assert found["objects"] == [{"rank": 0}, {"rank": 1}]


def test_batches_are_divided_as_nnunet_divides_them(of_rank):
    rank, found = of_rank
    assert found["shares"] == ([1, 2, 3], [1, 1, 2])[rank]


def test_the_order_is_that_among_all_keys_and_never_the_same(of_rank):
    """Of 0.1, 0.5, inf and 0.15, 0.55, inf; of 0.2, 0.2, 0.3 and 0.25, 0.25, 0.35."""
    rank, found = of_rank
    assert found["order"].tolist() == ([[0, 2, 4], [0, 1, 4]], [[1, 3, 5], [2, 3, 5]])[rank]
    assert found["ties"].tolist() == ([[0, 1]], [[2, 3]])[rank]


def test_rows_are_merged_with_their_gradient(of_rank):
    """Rank 1 has the last two. Each rank asks once for the gradient, which the mean of DDP makes one."""
    rank, found = of_rank
    assert found["merged"].tolist() == [[0, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert found["merged_mask"].tolist() == [False, True, True]
    assert found["gradient"].tolist() == ([[0, 0, 0]] * 3, [[0, 0, 0], [2, 2, 2], [4, 4, 4]])[rank]


def test_sums_are_merged_with_their_gradient(of_rank):
    """Each rank asks once for it, which the mean of DDP makes one."""
    _, found = of_rank
    assert found["merged_sums"].tolist() == [3, 20]
    assert found["gradient_of_sums"].tolist() == [6, 8]


def test_one_rank_communicates_nothing():
    values = torch.tensor([1.0, 2.0])
    assert (distributed.world_size(), distributed.rank(), distributed.local_batch_size(5)) == (1, 0, 5)
    assert distributed.total(values) is values
    assert distributed.mean(values) is values
    assert distributed.gather(values).tolist() == [[1, 2]]
    assert distributed.gather_objects("x") == ["x"]
    assert distributed.merge_sums(values) is values
    rows, is_local = torch.randn(2, 3, 4), torch.rand(2, 3) > 0.5
    table, mask = distributed.merge_rows(rows, is_local)
    assert table is rows
    assert mask is is_local


def test_a_rank_by_itself_communicates_nothing(of_rank):
    rank, found = of_rank
    assert found["alone"]["total"].tolist() == [rank + 1, 10]
    assert found["alone"]["ranks"] == (1, 0)


# --------------------------------------------------------------------------- draws


def test_draws_are_the_same_table_on_each_rank(results):
    first, second = (rank["draws"] for rank in results.two)
    assert torch.equal(first["per_class"], second["per_class"])
    assert all(map(torch.equal, first["voxels"], second["voxels"]))


def test_as_many_are_drawn_as_one_rank_draws(results):
    """Six of a class where all ranks together have six, else all, each once."""
    for drawn in results.two[0]["draws"]["per_class"]:
        for number, row in enumerate(drawn):
            voxels = row[row >= 0].tolist()
            assert len(voxels) == len(set(voxels)) == min(6, int(CLASSES.eq(number).sum()))
            assert (CLASSES[voxels] == number).all()
    for voxels in results.two[0]["draws"]["voxels"]:
        assert len(set(voxels.tolist())) == 6
        assert (CLASSES[voxels] == 0).all()


def test_a_voxel_has_the_same_chance_on_each_rank(results):
    """Rank 0 has 32 of the 80 voxels of class 0, and so 40 % of the draws, not half."""
    for result in (*(rank["draws"] for rank in results.two), results.one["draws"]):
        for voxels in (result["per_class"][:, 0], torch.stack(result["voxels"])):
            assert (voxels < 32).float().mean().item() == pytest.approx(0.4, abs=0.05)
            assert torch.bincount(voxels.flatten(), minlength=80)[CLASSES[:88] == 0].min() > 5
