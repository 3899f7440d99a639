"""The float32 island: contrast is computed in at least float32, whatever autocast hands over."""

import torch
from torch import Tensor


def full_precision(device: torch.device) -> torch.autocast:
    """A block without autocast: matrix products and einsum keep the dtype of their inputs."""
    return torch.autocast(device.type, enabled=False)


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float32 and float64 stay what they are."""
    return x.to(wide_dtype(x))


def wide_dtype(x: Tensor) -> torch.dtype:
    """For operations with an argument ``dtype``, which need no float32 copy of a whole float16 volume on a GPU."""
    return torch.promote_types(x.dtype, torch.float32)
