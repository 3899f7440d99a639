"""Rows written into a memory without the host knowing how many."""

import torch
from torch import Tensor


def write_rows(storage: Tensor, slots: Tensor, rows: Tensor, kept: Tensor) -> None:
    """``storage[slots[kept]] = rows[kept]``, where the host need not wait for the number of kept rows.

    Args:
        storage: [S, width], written in place.
        slots: [n] int64, different ones where kept, anything else where not.
        rows: [n, width], any floating dtype.
        kept: [n] bool.
    """
    if len(rows) == 0:
        return
    # a fixed number of rows is written: instead of one that is not kept, a kept one again; if none is, what is there
    source = torch.arange(len(rows), device=kept.device).where(kept, kept.int().argmax())
    slots = slots[source].clamp(min=0)
    storage[slots] = rows.detach()[source].to(storage).where(kept.any(), storage[slots])
