"""How often each class was seen."""

import torch

from nnunet_dvcl.memory import ClassCounts


def test_counts_add_up_and_are_saved():
    first, second = ClassCounts(3), ClassCounts(3)
    for counts in ([1, 2, 3], [10, 0, 2**25]):
        first.add(torch.tensor(counts))
    assert first.counts.tolist() == [11, 2, 3 + 2**25]
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.counts, second.counts)
    assert not list(first.parameters())
    assert "num_classes=3" in repr(first)
