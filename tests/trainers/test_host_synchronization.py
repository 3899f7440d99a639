"""What makes a GPU wait for the host in a step: counted on the CPU by the operations that would do so."""

from collections import Counter
from itertools import repeat

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_dvcl.losses import neighborhoods
from nnunet_dvcl.trainers import (
    nnUNetTrainerBaCon,
    nnUNetTrainerCCL,
    nnUNetTrainerCLD,
    nnUNetTrainerCPS,
    nnUNetTrainerCPS_HqCL,
    nnUNetTrainerCPS_SameView,
    nnUNetTrainerDAN,
    nnUNetTrainerDHC,
    nnUNetTrainerDVCL,
    nnUNetTrainerDVCL_noQDS,
    nnUNetTrainerDVCL_SameView,
    nnUNetTrainerMagicNet,
    nnUNetTrainerU2PL,
    nnUNetTrainerUAMT,
    nnUNetTrainerUGPCL,
)
from nnunet_dvcl.voxels import ranks

_READ_BY_HOST = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero"}
_INDEXED = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}


class HostReads(TorchDispatchMode):
    """Counts operations whose result the host needs before it can go on: a value, or the size of a selection."""

    def __init__(self):
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split(".")[0]
        by_mask = name in _INDEXED and any(
            isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1])
        )
        if name in _READ_BY_HOST or by_mask:
            self.counted[name] += 1
        return function(*args, **(kwargs or {}))


# whether the gradients are finite: asked on a CPU only, on a GPU the grad scaler knows
UPDATE = {"aten::_local_scalar_dense": 1}


def as_on_a_gpu(features, absent, similarity, queries, neighbors):
    """The ranks by the way that asks nothing of the host; only a CPU takes the other one."""
    return ranks._rank_among_all(features, absent, queries, neighbors)


@pytest.mark.parametrize(
    "trainer_class",
    [
        nnUNetTrainerCPS_SameView,
        nnUNetTrainerDVCL_SameView,
        nnUNetTrainerCPS,
        nnUNetTrainerCPS_HqCL,
        nnUNetTrainerDVCL,
        nnUNetTrainerDVCL_noQDS,
        nnUNetTrainerUAMT,
        nnUNetTrainerDAN,
        nnUNetTrainerU2PL,
        nnUNetTrainerCCL,
        nnUNetTrainerUGPCL,
        nnUNetTrainerBaCon,
        nnUNetTrainerCLD,
        nnUNetTrainerDHC,
        nnUNetTrainerMagicNet,
    ],
)
def test_a_step_reads_no_more_than_this(start, trainer_class, monkeypatch):
    monkeypatch.setattr(neighborhoods, "rank_seen_by_neighbors", as_on_a_gpu)
    trainer = start(trainer_class, "2d_tiny", contrastive_start=0.0)
    batch = next(trainer.dataloader_train)
    trainer.dataloader_unlabeled = repeat(next(trainer.dataloader_unlabeled))  # the loader computes on the host
    trainer.train_step(batch)
    with HostReads() as reads:
        trainer.train_step(batch)
    # nnU-Net's loss asks on each level whether any voxel is known
    of_nnunet = (
        0
        if getattr(trainer.config, "pseudo_label_loss", "ce") == "ce"
        else 2 * sum(weight != 0 for weight in trainer.loss.weight_factors)
    )
    # an update of its own, in which Adam counts the steps of each parameter on the host
    of_adversary = 1 + len(list(trainer.memory["adversary"].parameters())) if "adversary" in trainer.memory else 0
    assert reads.counted["aten::_local_scalar_dense"] == UPDATE["aten::_local_scalar_dense"] + of_nnunet + of_adversary
    assert reads.counted.keys() == UPDATE.keys()


def test_the_count_sees_what_it_is_for():
    rows, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    with HostReads() as reads:
        rows[mask]
        rows[mask] = 0.0
        rows.sum().item()
        mask.nonzero()
        rows[torch.tensor([0, 1])]
    assert reads.counted["aten::_local_scalar_dense"] == 1
    assert reads.counted["aten::index"] == 1
    assert reads.counted["aten::index_put_"] + reads.counted["aten::_index_put_impl_"] >= 1
    assert reads.counted["aten::nonzero"] >= 1
