"""FeatureQueue: the candidates of DVCL."""

import torch
from torch import Tensor, nn


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
        self._length: int | None = 0  # `count` on the host; None: not known
        self.register_load_state_dict_post_hook(_forget_length)

    def __len__(self) -> int:
        if self._length is None:
            self._length = int(self.count)
        return self._length

    @torch.no_grad()
    def push(self, **rows: Tensor) -> Tensor:
        """Stores n rows in order; the oldest make way.

        A row that is not finite in each part is not stored: its slot keeps what it held.

        Args:
            **rows: [n, width] for each part, any floating dtype.

        Returns:
            [n] int64: the index of each row in what `rows()` gives now; -1: dropped, because more than `capacity` rows
            came at once and only the last ones are kept.

        Raises:
            ValueError: other parts or widths than at construction, or parts of different length.
        """
        n = self._checked_length(rows)
        slots = (self.cursor + torch.arange(n, device=self.cursor.device)) % self.capacity
        slots[: max(n - self.capacity, 0)] = -1
        kept = slice(max(n - self.capacity, 0), n)
        finite = torch.stack([values.isfinite().all(1) for values in rows.values()]).all(0)[kept, None]
        for part, values in rows.items():
            buffer = self.get_buffer(_buffer(part))
            buffer[slots[kept]] = torch.where(finite, values[kept].detach().to(buffer), buffer[slots[kept]])
        self._length = min(len(self) + n, self.capacity)
        self.cursor.copy_((self.cursor + n) % self.capacity)
        self.count.copy_((self.count + n).clamp(max=self.capacity))
        return slots

    def rows(self) -> dict[str, Tensor]:
        """The filled rows of each part, [len(self), width] float32, as views: the next `push` writes into them."""
        count = len(self)
        return {part: self.get_buffer(_buffer(part))[:count] for part in self.parts}

    def _checked_length(self, rows: dict[str, Tensor]) -> int:
        if set(rows) != set(self.parts):
            raise ValueError(f"rows have the parts {sorted(rows)}, expected {sorted(self.parts)}")
        for part, values in rows.items():
            width = self.get_buffer(_buffer(part)).shape[1]
            if values.ndim != 2 or values.shape[1] != width:
                raise ValueError(f"{part} have shape {tuple(values.shape)}, expected [n, {width}]")
        lengths = {part: len(values) for part, values in rows.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"parts of different length: {lengths}")
        return next(iter(lengths.values()))

    def extra_repr(self) -> str:
        widths = ", ".join(f"{part}={self.get_buffer(_buffer(part)).shape[1]}" for part in self.parts)
        return f"{self.capacity}, {widths}"


def _buffer(part: str) -> str:
    return f"{part}_rows"


def _forget_length(queue: FeatureQueue, _: object) -> None:
    queue._length = None
