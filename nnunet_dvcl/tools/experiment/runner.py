"""Does the runs of an experiment with nnU-Net's own commands, one at a time on each device, several devices at once."""

import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from tqdm import tqdm

from nnunet_dvcl.data.storage import write_json
from nnunet_dvcl.lock import acquire
from nnunet_dvcl.options import read
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


@dataclass
class _Job:
    """A run that is being done."""

    run: Run
    device: str
    lock: TextIO
    command: Command | None = None
    process: subprocess.Popen | None = None


class Runner:
    """Gives each free device the next run that nobody else does."""

    def __init__(self, place: Workplace, cases: Cases, runs: Sequence[Run], devices: Sequence[str]):
        self.place = place
        self.cases = cases
        self.pending = list(runs)
        self.free = list(devices)
        self.jobs: list[_Job] = []
        self.failed: list[Run] = []
        self.num_elsewhere = 0
        self.bar = tqdm(total=len(runs), desc="Runs", unit="run", smoothing=0)

    def work(self) -> int:
        try:
            while self.pending or self.jobs:
                self._start_jobs()
                for job in list(self.jobs):
                    self._look_after(job)
                self.bar.set_postfix_str("; ".join(f"{job.device} {job.run.name} {self._at(job)}" for job in self.jobs))
                if self.jobs:
                    time.sleep(_POLL)
        finally:
            stop(*(job.process for job in self.jobs if job.process))
            for job in list(self.jobs):
                self._end(job)
            self.bar.close()
        self._conclude()
        return 1 if self.failed else 0

    def _start_jobs(self) -> None:
        for run in list(self.pending):
            if not self.free:
                return
            if run.row.selftrain is not None and self._is_to_come(run.teacher):
                continue
            self.pending.remove(run)
            if self.place.state(run) is State.FINISHED:
                claim(self.place, run, self.cases)
                self.bar.update()
            elif (lock := acquire(self.place.lock(run), patience=_LOOK)) is not None:
                self._begin(run, lock)
            else:
                self.num_elsewhere += 1
                self.bar.update()

    def _is_to_come(self, teacher: Run) -> bool:
        """Whether another row of this experiment trains it: then it is waited for."""
        home = self.place.home(teacher)
        others = [*self.pending, *(job.run for job in self.jobs)]
        return any(run.row.selftrain is None and self.place.home(run) == home for run in others)

    def _begin(self, run: Run, lock: TextIO) -> None:
        job = _Job(run, self.free.pop(0), lock)
        self.jobs.append(job)  # before all that may fail: it frees the lock
        claim(self.place, run, self.cases)
        self.place.failure(run).unlink(missing_ok=True)
        self._go_on(job, 0)

    def _go_on(self, job: _Job, status: int) -> None:
        """Starts the job's next command, or ends it where there is none or `status`, of the last one, is a failure."""
        command = next_command(self.place, job.run, job.device)
        if command is not None and status == 0 and (job.command is None or command[0] != job.command[0]):
            experiment = self.place.experiment
            variables = environment(experiment.environment, job.device, experiment.threads)
            with log_of(command, self.place.log(job.run)) as log:
                job.process = start(command, variables, log, pass_fds=(job.lock.fileno(),))
            job.command = command
            return
        if command is not None or status:
            self._report_failure(job.run, status)
        self._end(job)
        self.bar.update()

    def _look_after(self, job: _Job) -> None:
        status = job.process.poll()
        if status is None:
            return
        stop(job.process)  # workers that it may have left behind
        if status == 0 and job.command[0] == "nnUNetv2_predict":
            self._record_test(job.run)
        self._go_on(job, status)

    def _record_test(self, run: Run) -> None:
        """Says that the predictions are complete, when they are."""
        folder = self.place.predictions(run)
        if not without_file(folder, self.cases.test, self.place.dataset_json["file_ending"]):
            write_json({"checkpoint": CHECKPOINT, "cases": self.cases.test}, str(folder / RECORD))

    def _report_failure(self, run: Run, status: int) -> None:
        self.failed.append(run)
        self.place.failure(run).write_text(f"status {status}\n")
        reason = f"ended with status {status}" if status else "ended, but its results are not complete"
        self.bar.write(f"{run.name} {reason}. Its last lines:\n{tail(self.place.log(run))}")

    def _end(self, job: _Job) -> None:
        job.lock.close()
        self.jobs.remove(job)
        self.free.append(job.device)

    def _at(self, job: _Job) -> str:
        if job.command[0] == "nnUNetv2_predict":
            return "predicts"
        with open(self.place.log(job.run), "rb") as log:
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
