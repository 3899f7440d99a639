"""ClassBank: the anchors behind the class centers of HqCL."""

import torch
from torch import Tensor, nn

from nnunet_dvcl.memory.writing import write_rows


class ClassBank(nn.Module):
    """One first-in-first-out ring of anchor features per class; their mean is the center of the class.

    The memory bank of DVCL, section 3.3: R_c of Eq. 7 over the latest iterations, P_c of Eq. 8. Rows are stored
    detached, in float32.

    Args:
        num_classes: C, background included.
        capacity: rows kept for each class.
        dim: d, the width of a feature.

    Raises:
        ValueError: an argument below 1.
    """

    def __init__(self, num_classes: int, capacity: int, dim: int):
        super().__init__()
        for name, number in (("num_classes", num_classes), ("capacity", capacity), ("dim", dim)):
            if number < 1:
                raise ValueError(f"{name} is {number}, expected at least 1")
        self.num_classes = num_classes
        self.capacity = capacity
        self.register_buffer("features", torch.zeros(num_classes, capacity, dim))
        self.register_buffer("cursor", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def push(self, features: Tensor, classes: Tensor) -> None:
        """Stores each row in the ring of its class, in order; the oldest rows of that class make way.

        A row that is not finite is ignored.

        Args:
            features: [n, d], any floating dtype.
            classes: [n] int64 in [-1, C); -1: the row is ignored.

        Raises:
            ValueError: rows of another width.
        """
        if features.shape[1:] != self.features.shape[2:]:
            raise ValueError(f"features have shape {tuple(features.shape)}, expected [n, {self.features.shape[2]}]")
        classes = classes.where(features.isfinite().all(1), -1)
        one_hot = (classes[:, None] == torch.arange(self.num_classes, device=classes.device)).long()  # [n, C]
        arrived = one_hot.sum(0)  # [C]
        position = (one_hot.cumsum(0) - 1).gather(1, classes.clamp(min=0)[:, None])[:, 0]  # [n], place within the class
        kept = (classes >= 0) & (position >= (arrived - self.capacity)[classes])
        slot = classes * self.capacity + (self.cursor[classes] + position) % self.capacity
        write_rows(self.features.flatten(0, 1), slot, features, kept)
        self.cursor.copy_((self.cursor + arrived) % self.capacity)
        self.count.copy_((self.count + arrived).clamp(max=self.capacity))

    def centers(self) -> tuple[Tensor, Tensor]:
        """P_c of Eq. 8: the mean of the filled rows of each class.

        Returns:
            centers [C, d] float32, zero where a class has no row yet, and filled [C] bool.
        """
        # rows that are not filled yet are 0
        return self.features.sum(1) / self.count.clamp(min=1)[:, None], self.count > 0

    def rows(self) -> tuple[Tensor, Tensor]:
        """The rows of each class, as a view, [C, capacity, d] float32, and which are filled, [C, capacity] bool."""
        filled = torch.arange(self.capacity, device=self.count.device) < self.count[:, None]
        return self.features, filled

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, capacity={self.capacity}, dim={self.features.shape[-1]}"
