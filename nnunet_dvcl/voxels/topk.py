"""The k largest or smallest entries of long rows."""

import torch
from torch import Tensor

_GROUP = 16


def topk(x: Tensor, k: int, largest: bool = True) -> torch.return_types.topk:
    """`torch.topk` along the last dimension, several times faster on a CPU where k is small against its length n.

    In two levels: the k best entries are among the k groups of 16 with the best heads, and what is left over of n / 16.

    Args:
        x: [..., n] without nan.
        k: at most n.
        largest: else the smallest.

    Returns:
        values and indices, [..., k], the best first; equal entries in any order.
    """
    groups = x.shape[-1] // _GROUP
    if 4 * k > groups:
        return torch.topk(x, k, largest=largest)
    grouped = x[..., : groups * _GROUP].unflatten(-1, (_GROUP, groups))  # [..., 16, groups]
    heads = grouped.amax(-2) if largest else grouped.amin(-2)
    best = torch.topk(heads, k, largest=largest, sorted=False).indices
    members = best[..., None, :] + groups * torch.arange(_GROUP, device=x.device)[:, None]  # [..., 16, k]
    rest = torch.arange(groups * _GROUP, x.shape[-1], device=x.device).expand(*x.shape[:-1], -1)
    indices = torch.cat((members.flatten(-2), rest), -1)
    found = torch.topk(x.gather(-1, indices), k, largest=largest)
    return torch.return_types.topk((found.values, indices.gather(-1, found.indices)))
