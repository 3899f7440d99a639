"""FeatureQueue: the candidates of DVCL."""

import torch
from torch import Tensor, nn

from nnunet_dvcl.memory.writing import write_rows


class FeatureQueue(nn.Module):
    """A first-in-first-out queue of rows; a row has one part per width, for instance a feature and its probabilities.

    Holds the candidate sets of DVCL, Eq. 12. Rows are stored detached, in float32.

    Args:
        capacity: the number of rows that are kept.
        **widths: the width of each part, for instance ``FeatureQueue(8192, features=64, probabilities=14)``.

    Raises:
        ValueError: a capacity or width below 1, or no part at all.
    """

    def __init__(self, capacity: int, **widths: int):
        super().__init__()
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, expected at least 1")
        if not widths or min(widths.values()) < 1:
            raise ValueError(f"widths are {widths}, expected at least one part, each at least 1 wide")
        self.capacity = capacity
        self.parts = tuple(widths)
        for part, width in widths.items():
            self.register_buffer(_buffer(part), torch.zeros(capacity, width))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """The number of filled slots; on a GPU, the host waits for it."""
        return int(self.count)

    @torch.no_grad()
    def push(self, drawn: Tensor | None = None, /, **rows: Tensor) -> Tensor:
        """Stores rows in order; the oldest make way. A row that is not finite in each part is not stored.

        Args:
            drawn: [n] bool, False: not to be stored; None: all are.
            **rows: [n, width] for each part, any floating dtype.

        Returns:
            [n] int64: the slot of each row; -1: not stored, or more than `capacity` rows came at once, of which only
            the last ones are kept.

        Raises:
            ValueError: other parts or widths than at construction, or parts of different length.
        """
        self._check(rows)
        stored = torch.stack([values.isfinite().all(1) for values in rows.values()]).all(0)
        if drawn is not None:
            stored &= drawn
        place, arrived = stored.cumsum(0) - 1, stored.sum()
        kept = stored & (place >= arrived - self.capacity)
        slots = ((self.cursor + place) % self.capacity).where(kept, -1)
        for part, values in rows.items():
            write_rows(self._storage(part), slots, values, kept)
        self.cursor.copy_((self.cursor + arrived) % self.capacity)
        self.count.copy_((self.count + arrived).clamp(max=self.capacity))
        return slots

    def slots(self) -> tuple[dict[str, Tensor], Tensor]:
        """All slots of each part, [capacity, width] float32, and which are filled, [capacity] bool.

        The parts are views: the next `push` writes into them.
        """
        filled = torch.arange(self.capacity, device=self.count.device) < self.count
        return {part: self._storage(part) for part in self.parts}, filled

    def rows(self) -> dict[str, Tensor]:
        """The filled slots of each part, [len(self), width] float32, as views."""
        count = len(self)
        return {part: self._storage(part)[:count] for part in self.parts}

    def _storage(self, part: str) -> Tensor:
        return self.get_buffer(_buffer(part))

    def _check(self, rows: dict[str, Tensor]) -> None:
        if set(rows) != set(self.parts):
            raise ValueError(f"rows have the parts {sorted(rows)}, expected {sorted(self.parts)}")
        for part, values in rows.items():
            width = self._storage(part).shape[1]
            if values.ndim != 2 or values.shape[1] != width:
                raise ValueError(f"{part} have shape {tuple(values.shape)}, expected [n, {width}]")
        lengths = {part: len(values) for part, values in rows.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"parts of different length: {lengths}")

    def extra_repr(self) -> str:
        widths = ", ".join(f"{part}={self._storage(part).shape[1]}" for part in self.parts)
        return f"{self.capacity}, {widths}"


def _buffer(part: str) -> str:
    return f"{part}_rows"
