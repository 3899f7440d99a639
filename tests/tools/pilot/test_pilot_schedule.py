"""How long the trainings of a pilot are: as the hours, the devices and the configuration allow."""

import pytest

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.pilot.schedule import LEAST, Schedule, Timing, duration, fit

NNUNETS = Schedule(1000, 250, 50)
SLOW, FAST = Timing(step=1.5, epoch=2, run=60), Timing(step=0.5, epoch=1, run=30)


@pytest.mark.parametrize(
    ("longest", "steps", "shortened"),
    [
        (NNUNETS, 10**9, NNUNETS),
        (NNUNETS, 7600, Schedule(30, 250, 50)),  # whole epochs of nnU-Net's length
        (NNUNETS, 2000, Schedule(20, 100, 20)),  # shorter epochs, for the learning rate to fall in steps
        (NNUNETS, 20, Schedule(20, 1, 1)),
        (NNUNETS, 7, Schedule(7, 1, 1)),
        (Schedule(3, 40, 2), 60, Schedule(3, 20, 1)),  # the configuration itself is short
        (Schedule(2, 2, 1), 100, Schedule(2, 2, 1)),
    ],
)
def test_a_shortened_schedule(longest, steps, shortened):
    assert longest.shortened(steps) == shortened


@pytest.mark.parametrize("steps", range(1, 12_000, 113))
def test_a_shortened_schedule_is_never_longer_than_asked_for_and_nearly_as_long(steps):
    assert steps * 0.94 - 20 <= NNUNETS.shortened(steps).steps <= steps


def test_trainings_go_to_the_device_that_is_free_first():
    assert duration([4, 1, 1, 1], 1) == 7
    assert duration([4, 1, 1, 1], 2) == 4
    assert duration([1, 1, 4], 2) == 5
    assert duration([], 2) == 0


@pytest.mark.parametrize(("devices", "hours"), [(1, 4), (3, 4), (1, 40)])
def test_the_schedule_fills_the_hours(devices, hours):
    schedule = fit([FAST, SLOW], 5, devices, hours * 3600, NNUNETS)
    taken = duration([FAST.training(schedule), SLOW.training(schedule)] * 5, devices) / 3600
    assert 0.9 * hours < taken <= hours


def test_one_device_in_numbers():
    """2 folds of 200 steps: 2 x (30 + 20 + 100 + 60 + 40 + 300) s."""
    assert fit([FAST, SLOW], 2, 1, 1100, NNUNETS) == Schedule(20, 10, 2)
    assert fit([FAST, SLOW], 2, 1, 1099, NNUNETS).steps == 180


def test_a_pilot_is_not_longer_than_the_configuration_asks_for():
    assert fit([FAST], 2, 1, 1e9, Schedule(10, 5, 1)) == Schedule(10, 5, 1)


def test_too_little_time_is_told_with_the_hours_that_are_needed():
    with pytest.raises(UserError, match=rf"4 trainings of {LEAST} steps.* take 0.19 hours, and 0.1 are left"):
        fit([FAST, SLOW], 2, 1, 360, NNUNETS)
    with pytest.raises(UserError, match="0 are left after the timing"):
        fit([FAST, SLOW], 2, 1, -5, NNUNETS)
