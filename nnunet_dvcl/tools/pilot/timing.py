"""What a step and a training of each trainer take on this machine: a training of a few steps in the first fold."""

from __future__ import annotations

import shutil

from nnunet_dvcl.tools.experiment.runner import run_experiment
from nnunet_dvcl.tools.experiment.runs import RECORD, Run, State, Workplace, all_runs
from nnunet_dvcl.tools.inspection import read_plain
from nnunet_dvcl.tools.pilot.schedule import Schedule, Timing
from nnunet_dvcl.tools.running.progress import CHECKPOINT

FEW_STEPS = Schedule(num_epochs=3, num_iterations_per_epoch=5, num_val_iterations_per_epoch=1)
"""The first epoch compiles, looks for the fastest kernels and uses up what the workers had ready; the others count."""


def time_trainers(place: Workplace) -> dict[str, Timing] | None:
    """Trainer -> what it costs, measured now or in an earlier call. None where a training failed.

    Args:
        place: of an experiment whose every run has `FEW_STEPS`.
    """
    runs = all_runs(place.experiment)
    for run in runs:
        if place.state(run) not in (State.FINISHED, State.RUNNING):
            shutil.rmtree(place.home(run), ignore_errors=True)  # what was stopped has the time of the pause in it
    if run_experiment(place) != 0:
        return None
    return {run.row.trainer: _read(place, run) for run in runs}


def _read(place: Workplace, run: Run) -> Timing:
    folder = place.source(run).folder
    logged = read_plain(str(folder / CHECKPOINT))["logging"]
    starts, ends = logged["epoch_start_timestamps"], logged["epoch_end_timestamps"]
    slowest = max(end - start for start, end in list(zip(starts, ends, strict=True))[1:])
    between = starts[-1] - ends[-2]
    step = slowest / FEW_STEPS.num_iterations_per_epoch
    begun, ended = ((folder / name).stat().st_mtime for name in (RECORD, "validation/summary.json"))
    rest = ended - begun - FEW_STEPS.num_epochs * between - FEW_STEPS.steps * step
    return Timing(float(step), float(between), max(float(rest), 0.0))
