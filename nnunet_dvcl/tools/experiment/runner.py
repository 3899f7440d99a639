"""Does the runs of an experiment with nnU-Net's own commands, one at a time on each device, several devices at once."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TextIO

from tqdm import tqdm

from nnunet_dvcl.data.storage import write_json
from nnunet_dvcl.lock import acquire
from nnunet_dvcl.options import read
from nnunet_dvcl.progress import LINES_APART
from nnunet_dvcl.tools.experiment.experiment_file import Devices
from nnunet_dvcl.tools.experiment.prepare import Cases, claim, prepare
from nnunet_dvcl.tools.experiment.runs import RECORD, Run, State, Workplace, all_runs, find_runs
from nnunet_dvcl.tools.running.command import Command, environment, kind
from nnunet_dvcl.tools.running.process import log_of, start, stop, stoppable, tail
from nnunet_dvcl.tools.running.progress import CHECKPOINT, without_file

_POLL = 0.5  # s
_LOOK = 0.3  # s in which those who only look at a lock have let it go
FIRST_ID = 600  # of the data sets that rows of self-training make


def training(place: Workplace, run: Run, device: str, *options: str) -> Command:
    """What trains a run; `options` are for ``nnUNetv2_train``, those that it needs now where none is given."""
    model, rows = place.source(run), run.row.selftrain
    if rows is None:
        return model.training(kind(device), *options)
    uncertain = () if rows.ignore_uncertain is None else ("--ignore-uncertain", rows.ignore_uncertain)
    words = ("nnunet_dvcl", "selftrain", *model.options, "--rounds", rows.rounds, *uncertain, "--to", FIRST_ID)
    return Command(*words, "-device", kind(device))


def prediction(place: Workplace, run: Run, device: str) -> Command:
    """The command that predicts the test cases."""
    return place.model(run).prediction(place.test_images, place.predictions(run), kind(device))


def next_command(place: Workplace, run: Run, device: str) -> Command | None:
    """What a run needs next; None when it is finished."""
    if not place.is_trained(run):
        return training(place, run, device)
    return None if place.is_tested(run) else prediction(place, run, device)


def run_experiment(
    place: Workplace, names: Sequence[str] = (), devices: Sequence[str] = (), only_prepare: bool = False
) -> int:
    """Does what is not finished.

    Args:
        names: of the runs to do; all of them without any.
        devices: instead of those of the file.

    Returns:
        The exit status: 1 when a run failed, else 0.

    Raises:
        UserError: no such run or device; the experiment cannot be prepared; a run has results of something else.
    """
    devices = read(Devices, devices, "--devices") if devices else place.experiment.devices
    runs = find_runs(all_runs(place.experiment), names)
    with stoppable():
        cases = prepare(place)
        if only_prepare:
            return 0
        return Runner(place, cases, runs, devices).work()


class Runner:
    """Gives each free device the next run that nobody else does."""

    def __init__(self, place: Workplace, cases: Cases, runs: Sequence[Run], devices: Sequence[str]):
        self.place = place
        self.cases = cases
        self.pending = list(runs)
        self.free = list(devices)
        self.jobs: list[tuple[Run, str, Iterator[str]]] = []  # with the device, and what the run is at
        self.processes: dict[Run, subprocess.Popen] = {}
        self.failed: list[Run] = []
        self.num_elsewhere = 0
        self.bar = tqdm(total=len(runs), desc="Runs", unit="run", smoothing=0)
        self.shown = 0.0

    def work(self) -> int:
        try:
            while self.pending or self.jobs:
                self._start_jobs()
                states = {job: next(job[-1], None) for job in self.jobs}
                self._show("; ".join(filter(None, states.values())))
                if all(states.values()):
                    time.sleep(_POLL)
                for job in [job for job, state in states.items() if state is None]:
                    self.jobs.remove(job)
                    self.free.append(job[1])
                    self.bar.update()
        finally:
            stop(*self.processes.values())
            for *_, steps in self.jobs:
                steps.close()
            self.bar.close()
        self._conclude()
        return 1 if self.failed else 0

    def _show(self, states: str) -> None:
        """On a terminal at once; in a file a line a minute at most."""
        due = sys.stderr.isatty() or time.monotonic() - self.shown >= LINES_APART
        self.bar.set_postfix_str(states, refresh=due)
        if due:
            self.shown = time.monotonic()

    def _start_jobs(self) -> None:
        for run in list(self.pending):
            if self.free and not (run.row.selftrain is not None and self._is_to_come(run.teacher)):
                self.pending.remove(run)
                device = self.free.pop(0)
                self.jobs.append((run, device, self._do(run, device)))

    def _is_to_come(self, teacher: Run) -> bool:
        """Whether another row of this experiment trains it: then it is waited for."""
        home = self.place.home(teacher)
        others = [*self.pending, *(run for run, *_ in self.jobs)]
        return any(run.row.selftrain is None and self.place.home(run) == home for run in others)

    def _do(self, run: Run, device: str) -> Iterator[str]:
        """Does a run to its end or its first failure; yields what it is at."""
        if self.place.state(run) is State.FINISHED:
            claim(self.place, run, self.cases)
            return
        lock = acquire(self.place.lock(run), patience=_LOOK)
        if lock is None:
            self.num_elsewhere += 1
            return
        with lock:
            claim(self.place, run, self.cases)
            self.place.failure(run).unlink(missing_ok=True)
            status, last = 0, None
            while status == 0 and (command := next_command(self.place, run, device)) and command[0] != last:
                last = command[0]
                process = self.processes[run] = self._start(command, run, device, lock)
                try:
                    while (status := process.poll()) is None:
                        yield f"{device} {run.name} {self._at(run, command)}"
                finally:
                    stop(self.processes.pop(run))  # and workers that it may have left behind
                if status == 0 and last == "nnUNetv2_predict":
                    self._record_test(run)
            if command is not None:
                self._report_failure(run, status)

    def _start(self, command: Command, run: Run, device: str, lock: TextIO) -> subprocess.Popen:
        experiment = self.place.experiment
        variables = environment(experiment.environment, device, experiment.threads)
        with log_of(command, self.place.log(run)) as log:
            return start(command, variables, log, pass_fds=(lock.fileno(),))

    def _record_test(self, run: Run) -> None:
        """Says that the predictions are complete, when they are."""
        folder = self.place.predictions(run)
        if not without_file(folder, self.cases.test, self.place.dataset.json["file_ending"]):
            write_json({"checkpoint": CHECKPOINT, "cases": self.cases.test}, str(folder / RECORD))

    def _report_failure(self, run: Run, status: int) -> None:
        self.failed.append(run)
        self.place.failure(run).write_text(f"status {status}\n")
        reason = f"ended with status {status}" if status else "ended, but its results are not complete"
        self.bar.write(f"{run.name} {reason}. Its last lines:\n{tail(self.place.log(run))}")

    def _at(self, run: Run, command: Command) -> str:
        if command[0] == "nnUNetv2_predict":
            return "predicts"
        with open(self.place.log(run), "rb") as log:
            log.seek(max(0, os.path.getsize(log.name) - 4096))
            epochs = re.findall(rb": Epoch (\d+)", log.read())
        return f"epoch {epochs[-1].decode()}" if epochs else ""

    def _conclude(self) -> None:
        if self.num_elsewhere:
            print(f"{self.num_elsewhere} run(s) are being done by another process.")
        if self.failed:
            print(f"{len(self.failed)} run(s) failed; called again, this command goes on with them:")
            for run in self.failed:
                print(f"  {run.name}: {self.place.log(run)}")
