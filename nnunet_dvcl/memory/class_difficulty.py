"""How hard each class is to learn: how low its Dice is, and how often that has fallen."""

import torch
from torch import Tensor, nn


class ClassDifficulty(nn.Module):
    """The difficulty of each class, [K, R]: DHC's DiffDW (Wang & Li, MICCAI 2023).

    With λ the Dice of a class in a step, Δ = λ - λ_last and s = Δ·log(λ / λ_last), which is never negative: s is
    averaged over the steps, as learning where Δ > 0 and as unlearning where Δ < 0. A class is the harder the more of it
    was unlearned and the lower its Dice is.

    Args:
        num_classes: K.
        num_decisions: R.
        memory: τ, how many steps are averaged over.
        power: α of (unlearned / learned)^α.
    """

    def __init__(self, num_classes: int, num_decisions: int, memory: int, power: float):
        super().__init__()
        self.memory, self.power = memory, power
        for name in ("last_dice", "learned", "unlearned", "missing"):
            self.register_buffer(name, torch.zeros(num_classes, num_decisions))
        self.register_buffer("seen", torch.zeros(num_classes, num_decisions, dtype=torch.bool))

    @torch.no_grad()
    def update(self, dice: Tensor, present: Tensor) -> None:
        """A step more; what is not finite is ignored.

        Args:
            dice: λ, [K, R] in [0, 1].
            present: [K, R] bool; a class that is not there stays what it was.
        """
        usable = present & dice.isfinite()
        dice = dice.to(self.last_dice.dtype).clamp(_SMALLEST, 1)
        change = dice - self.last_dice
        moved = (change * (dice / self.last_dice.clamp(min=_SMALLEST)).log()).where(self.seen, 0.0)
        for name, now in (
            ("learned", moved.where(change > 0, 0.0)),
            ("unlearned", moved.where(change < 0, 0.0)),
            ("missing", 1 - dice),
        ):
            before = getattr(self, name)
            average = torch.lerp(before, now, 1 / self.memory)
            if name == "missing":  # its first value is no change
                average = average.where(self.seen, now)
            before.copy_(average.where(usable, before))
        self.last_dice.copy_(dice.where(usable, self.last_dice))
        self.seen |= usable

    def difficulty(self) -> Tensor:
        """(unlearned / learned)^α · (1 - λ), divided by the largest of each decision: [K, R] in [0, 1].

        A class that was not seen is as hard as the hardest; before any was, all are 1.
        """
        ratio = ((self.unlearned + _SMALLEST) / (self.learned + _SMALLEST)).pow(self.power)
        hard = (ratio * self.missing).where(self.seen, 0.0)
        highest = hard.amax(0)
        return (hard / highest.where(highest > 0, 1)).where(self.seen & (highest > 0), 1)


_SMALLEST = 1e-8
