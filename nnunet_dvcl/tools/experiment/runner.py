"""Does the runs of an experiment with nnU-Net's own commands, one at a time on each device, several devices at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from nnunet_dvcl.data.storage import write_json
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.experiment.prepare import Cases, claim, prepare
from nnunet_dvcl.tools.experiment.runs import RECORD, Run, State, Workplace, all_runs, find_runs
from nnunet_dvcl.tools.running.command import Command, environment, kind, nnunet_dvcl
from nnunet_dvcl.tools.running.lock import Lock
from nnunet_dvcl.tools.running.progress import CHECKPOINT, next_training

_POLL = 0.5  # s
_PATIENCE = 15.0  # s that an ended command has to clean up
FIRST_ID = 600  # of the data sets that rows of self-training make
_TAIL = 15  # lines of a log that are shown


def training(place: Workplace, run: Run, device: str) -> Command | None:
    """The command that a run needs next to be trained and validated; None when it is."""
    if place.is_trained(run):
        return None
    if run.row.selftrain is not None:
        return plain_training(place, run, device)
    return plain_training(place, run, device, *next_training(place.source(run).folder))


def plain_training(place: Workplace, run: Run, device: str, *options: str) -> Command:
    """As a user types it; `options` are for ``nnUNetv2_train``."""
    model, rows = place.source(run), run.row.selftrain
    if rows is not None:
        uncertain = () if rows.ignore_uncertain is None else ("--ignore-uncertain", rows.ignore_uncertain)
        words = ("selftrain", *model.options, "--rounds", rows.rounds, *uncertain, "--to", FIRST_ID)
        return nnunet_dvcl(*words, "-device", kind(device))
    words = ("nnUNetv2_train", place.dataset_id, model.configuration, model.fold, "-tr", model.trainer)
    return Command(*words, "-p", model.plans, "-device", kind(device), *options)


def prediction(place: Workplace, run: Run, device: str) -> Command:
    """The command that predicts the test cases with the checkpoint of the last epoch."""
    words = ("nnUNetv2_predict", "-i", place.test_images, "-o", place.predictions(run), *place.model(run).options)
    return Command(*words, "-chk", CHECKPOINT, "-device", kind(device), "--continue_prediction")


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
        UserError: the experiment cannot be prepared; a run has results of something else.
    """
    runs = find_runs(all_runs(place.experiment), names)
    with _stoppable():
        cases = prepare(place, lambda command, log: _call(place, command, log))
        if only_prepare:
            return 0
        return Runner(place, cases, runs, devices or place.experiment.devices).work()


def _call(place: Workplace, command: Command, name: str) -> None:
    """One command of the preparation, on the terminal and in a log."""
    log = place.folder / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"$ {command}\n  log: {log}", flush=True)
    variables = environment("", place.experiment.threads, place.experiment.environment)
    if variables.get("nnUNet_n_proc_DA") == "0":  # nnU-Net's planner cannot do with 0 workers
        del variables["nnUNet_n_proc_DA"]
    with open(log, "ab") as output:
        process = _start(command, variables, output)
    try:
        status = process.wait()
    finally:
        _stop(process)
    if status:
        raise UserError(f"{command[0]} failed with status {status}. Its last lines:\n{tail(log)}\nAll: {log}")


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL:])


@dataclass
class _Job:
    """A run that is being done."""

    run: Run
    device: str
    lock: Lock
    log: TextIO
    process: subprocess.Popen
    is_training: bool


class Runner:
    """Gives each free device the next run that nobody else does."""

    def __init__(self, place: Workplace, cases: Cases, runs: Sequence[Run], devices: Sequence[str]):
        self.place = place
        self.cases = cases
        self.pending = list(runs)
        self.free = list(devices)
        self.jobs: list[_Job] = []
        self.failed: list[Run] = []
        self.elsewhere: list[Run] = []
        self.bar = tqdm(total=len(runs), desc="Runs", unit="run", smoothing=0)

    def work(self) -> int:
        try:
            while self.pending or self.jobs:
                self._start_jobs()
                self._look_after_jobs()
                self._show()
                if self.jobs:
                    time.sleep(_POLL)
        finally:
            _stop(*(job.process for job in self.jobs))
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
                continue
            # someone who only looks holds it for a moment
            lock = Lock.acquire(self.place.lock(run)) or _acquire_soon(self.place.lock(run))
            if lock is None:
                self.elsewhere.append(run)
                self.bar.update()
                continue
            try:
                self._begin(run, self.free[0], lock)
            except BaseException:
                lock.release()
                raise

    def _is_to_come(self, teacher: Run) -> bool:
        """Whether another row of this experiment trains it: then it is waited for."""
        home = self.place.home(teacher)
        others = [*self.pending, *(job.run for job in self.jobs)]
        return any(run.row.selftrain is None and self.place.home(run) == home for run in others)

    def _begin(self, run: Run, device: str, lock: Lock) -> None:
        claim(self.place, run, self.cases)
        self.place.failure(run).unlink(missing_ok=True)
        log = self.place.log(run)
        log.parent.mkdir(parents=True, exist_ok=True)
        file = open(log, "a", encoding="utf-8")  # noqa: SIM115 - closed with the job
        try:
            command = training(self.place, run, device)
            is_training = command is not None
            process = self._call(command or prediction(self.place, run, device), device, lock, file)
        except BaseException:
            file.close()
            raise
        self.free.remove(device)
        self.jobs.append(_Job(run, device, lock, file, process, is_training))

    def _call(self, command: Command, device: str, lock: Lock, log: TextIO) -> subprocess.Popen:
        log.write(f"\n$ {command}\n")
        log.flush()
        experiment = self.place.experiment
        variables = environment(device, experiment.threads, experiment.environment)
        return _start(command, variables, log, pass_fds=(lock.descriptor,))

    def _look_after_jobs(self) -> None:
        for job in list(self.jobs):
            status = job.process.poll()
            if status is None:
                continue
            _stop(job.process)  # workers that it may have left behind
            if status == 0 and job.is_training and self.place.is_trained(job.run) and self.place.has_test:
                job.is_training = False
                job.process = self._call(prediction(self.place, job.run, job.device), job.device, job.lock, job.log)
                continue
            if status == 0 and not job.is_training:
                self._record_test(job.run)
            done = status == 0 and self.place.is_trained(job.run) and self.place.is_tested(job.run)
            if not done:
                self._report_failure(job, status)
            self._end(job)
            self.bar.update()

    def _record_test(self, run: Run) -> None:
        """Says that the predictions are complete, when they are."""
        folder = self.place.predictions(run)
        predicted = {file.name.split(".")[0] for file in folder.iterdir()}
        if {case.split(".")[0] for case in self.cases.test} <= predicted:
            write_json({"checkpoint": CHECKPOINT, "cases": self.cases.test}, str(folder / RECORD))

    def _report_failure(self, job: _Job, status: int) -> None:
        self.failed.append(job.run)
        job.log.flush()
        self.place.failure(job.run).write_text(f"status {status}\n")
        reason = f"ended with status {status}" if status else "ended, but its results are not complete"
        self.bar.write(f"{job.run.name} {reason}. Its last lines:\n{tail(self.place.log(job.run))}")

    def _end(self, job: _Job) -> None:
        job.log.close()
        job.lock.release()
        self.jobs.remove(job)
        self.free.append(job.device)

    def _show(self) -> None:
        self.bar.set_postfix_str("; ".join(f"{job.device} {job.run.name} {self._epoch(job)}" for job in self.jobs))

    def _epoch(self, job: _Job) -> str:
        if not job.is_training:
            return "predicts"
        with open(job.log.name, "rb") as file:
            file.seek(max(0, os.path.getsize(job.log.name) - 4096))
            epochs = re.findall(rb": Epoch (\d+)", file.read())
        return f"epoch {epochs[-1].decode()}" if epochs else ""

    def _conclude(self) -> None:
        if self.elsewhere:
            print(f"{len(self.elsewhere)} run(s) are being done by another process.")
        if self.failed:
            print(f"{len(self.failed)} run(s) failed; called again, this command goes on with them:")
            for run in self.failed:
                print(f"  {run.name}: {self.place.log(run)}")


def _acquire_soon(file: Path) -> Lock | None:
    for _ in range(3):
        time.sleep(0.1)
        if (lock := Lock.acquire(file)) is not None:
            return lock
    return None


# ---------------------------------------------------------------- processes


def _start(command: Command, variables: dict[str, str], log, pass_fds: Sequence[int] = ()) -> subprocess.Popen:
    """In a group of its own, which can be ended with all its workers."""
    return subprocess.Popen(
        command.program(),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=variables,
        pass_fds=pass_fds,
        start_new_session=True,
    )


def _stop(*processes: subprocess.Popen) -> None:
    """Ends commands and all that they have started, at first with the chance to clean up."""
    running = [process for process in processes if process.poll() is None]
    _signal(running, signal.SIGTERM)
    deadline = time.monotonic() + _PATIENCE
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
    _signal(processes, signal.SIGKILL)
    for process in processes:
        process.wait()


def _signal(processes: Sequence[subprocess.Popen], number: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):  # nobody is left in its group
            os.killpg(process.pid, number)


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM (a queueing system's) ends the block as Ctrl-C does."""

    owner = os.getpid()

    def interrupt(*_) -> None:
        if os.getpid() != owner:  # a forked worker, which has inherited this and has to end
            os._exit(128 + signal.SIGTERM)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
