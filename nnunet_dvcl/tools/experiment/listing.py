"""What ``nnunet_dvcl experiment status`` and ``commands`` print."""

from collections import Counter

from nnunet_dvcl.tools.experiment.runner import prediction, training
from nnunet_dvcl.tools.experiment.runs import State, Workplace, all_runs
from nnunet_dvcl.tools.running.command import Command


def print_status(place: Workplace) -> None:
    """One line a run, and how many there are in each state."""
    states = {run: place.state(run) for run in all_runs(place.experiment)}
    width = max(len(state.value) for state in states.values())
    for run, state in states.items():
        log = place.log(run)
        print(f"{state.value:{width}}  {run.name}" + (f"  {log}" if state is State.FAILED else ""))
    counts = Counter(states.values())
    print(f"{len(states)} runs: " + ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state]))


def command_lines(place: Workplace, nnunet: bool) -> list[str]:
    """A line for each run that is not finished, for a queueing system.

    Args:
        nnunet: nnU-Net's own commands, which know no locks, check nothing and write no log; else ours.
    """
    lines = []
    for run in all_runs(place.experiment):
        if place.state(run) is State.FINISHED:
            continue
        device = place.experiment.devices[0].partition(":")[0]
        if not nnunet:
            options = ("--runs", run.name, "--devices", device)
            lines.append(str(Command("nnunet_dvcl", "experiment", "run", place.experiment.file, *options)))
            continue
        # without a checkpoint --c starts anew
        line = [str(training(place, run, device, "--c"))]
        if place.has_test and place.model(run) is not None:
            line.append(str(prediction(place, run, device)))
        lines.append(" && ".join(line))
    return lines
