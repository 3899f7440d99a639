"""How long each training of a pilot may be: the same number of steps for all trainers, as many as the hours allow."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_dvcl.errors import UserError

LEAST = 100
"""Steps: a shorter training, of networks that begin with random weights, says nothing."""
ENOUGH = 1000
"""Steps: a shorter training may end before a difference shows. Ours."""
START = 5
"""Seconds: no training takes less, on any machine, until nnU-Net has begun its first step."""
_EPOCHS = 20  # of a short training; a longer one has more, of as many steps as the configuration gives them


@dataclass(frozen=True)
class Schedule:
    """Length of a training, by the names of its keys under ``"ssl"``."""

    num_epochs: int
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int

    @property
    def steps(self) -> int:
        return self.num_epochs * self.num_iterations_per_epoch

    def shortened(self, steps: int) -> Schedule:
        """A training of at most `steps` steps, and no more than this one has; validation in proportion."""
        steps = min(max(steps, 1), self.steps)
        of_epoch = self.num_iterations_per_epoch
        epochs = max(steps // of_epoch, min(_EPOCHS, self.num_epochs, steps))
        iterations = min(steps // epochs, of_epoch)
        return Schedule(epochs, iterations, max(1, self.num_val_iterations_per_epoch * iterations // of_epoch))


@dataclass(frozen=True)
class Timing:
    """What a trainer costs on this machine, in seconds."""

    step: float  # with its share of the epoch's validation
    epoch: float  # between two epochs: checkpoint and pictures
    run: float  # once a training: start, compilation, the validation of whole cases at its end

    def training(self, schedule: Schedule) -> float:
        """Seconds of a whole training."""
        return self.run + schedule.num_epochs * self.epoch + schedule.steps * self.step


def duration(trainings: Sequence[float], num_devices: int) -> float:
    """Seconds until all trainings are done, in this order, each on the device that is free first.

    Args:
        trainings: seconds of each.
    """
    free = [0.0] * num_devices
    for seconds in trainings:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def needed(timings: Sequence[Timing], num_folds: int, num_devices: int, schedule: Schedule) -> float:
    """Seconds until each trainer has been trained in each fold."""
    return duration([timing.training(schedule) for timing in timings] * num_folds, num_devices)


def fit(timings: Sequence[Timing], num_folds: int, num_devices: int, seconds: float, longest: Schedule) -> Schedule:
    """The longest training that each trainer can have in each fold, in the time that there is for all.

    Args:
        timings: of each trainer.
        seconds: for all trainings, on all devices.
        longest: what the configuration itself asks for; a pilot is not longer.

    Raises:
        UserError: not even `LEAST` steps fit in; says how many hours they need.
    """

    def seconds_of(steps: int) -> float:
        return needed(timings, num_folds, num_devices, longest.shortened(steps))

    fitting, too_many = 0, longest.steps + 1
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        fitting, too_many = (middle, too_many) if seconds_of(middle) <= seconds else (fitting, middle)
    least = min(LEAST, longest.steps)
    if fitting < least:
        raise UserError(
            f"The time is too short: {num_folds * len(timings)} trainings of {least} steps, fewer than which say "
            f"nothing, take {seconds_of(least) / 3600:.2g} hours, and {max(seconds, 0) / 3600:.2g} are left after the "
            "timing, which is kept. Give more --hours; or fewer --trainers or a smaller configuration, and another -o."
        )
    return longest.shortened(fitting)
