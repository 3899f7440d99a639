"""The two levels of `topk` against torch's own."""

import pytest
import torch

from nnunet_dvcl.voxels.topk import topk


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (40, 40), (1000, 5), (1024, 16), (1039, 16), (8192, 1), (5000, 70)])
def test_values_are_those_of_torch_and_indices_lead_to_them(n, k, largest):
    torch.manual_seed(n)
    for x in (torch.randn(7, n), torch.randint(9, (7, n)), torch.randn(n).double(), torch.randn(2, 3, n)):
        found = topk(x, k, largest)
        assert torch.equal(found.values, torch.topk(x, k, largest=largest).values)
        assert torch.equal(x.gather(-1, found.indices), found.values)
        assert all(len(set(row)) == k for row in found.indices.reshape(-1, k).tolist())


def test_infinite_entries_are_taken_last():
    x = torch.full((1000,), -torch.inf)
    x[torch.tensor([3, 500, 999])] = torch.tensor([1.0, 2.0, 3.0])
    found = topk(x, 5)
    assert found.values.tolist() == [3, 2, 1, -torch.inf, -torch.inf]
    assert found.indices[:3].tolist() == [999, 500, 3]
