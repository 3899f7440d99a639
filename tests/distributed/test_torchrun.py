"""``torchrun ... -m nnunet_dvcl.train``: as two machines over loopback, one of whose workers is killed."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dvcl import _register, train
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.trainers import nnUNetTrainerDVCL

ROOT = Path(__file__).parents[2]
EPOCHS = 4
SSL = {
    **{"num_epochs": EPOCHS, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "feature_dim": 8},
    **{"num_anchors": 16, "num_negatives": 8, "bank_capacity": 64, "num_queries": 32, "queue_capacity": 128},
    **{"outlier_neighbors": 20, "validation_voxels": 64},
}
KILLED_ONCE = """
import os
import signal
import time

from nnunet_dvcl.trainers import nnUNetTrainerDVCL


class nnUNetTrainerKilledOnce(nnUNetTrainerDVCL):
    def initialize(self):
        super().initialize()
        self.save_every = 1

    def after_step(self):
        done = os.path.join(os.environ["nnUNet_results"], f"killed_{self.local_rank}")
        # rank 0 has saved epoch 1 before it takes part in a step of epoch 2
        if self.current_epoch == 2 and not os.path.exists(done):
            open(done, "w").close()
            if self.local_rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            # of itself it would fail too, sooner or later than torchrun tells its machine to restart: here later
            time.sleep(600)
"""


@pytest.mark.slow
def test_two_machines_go_on_from_the_last_checkpoint_after_a_worker_is_killed(tiny_dataset, tmp_path, warm):
    plans = tiny_dataset.plans
    plans["configurations"]["2d_tiny"]["ssl"] = SSL
    tiny_dataset.write_plans(plans)
    tiny_dataset.write_splits(
        {"train": ["case_0", "case_1", "case_2"], "val": ["case_4", "case_5"], "unlabeled": ["case_3"]}
    )
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers/killed_once.py").write_text(KILLED_ONCE)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")},
        **tiny_dataset.env,
        "nnUNet_extTrainer": os.pathsep.join((str(tmp_path / "trainers"), _register.FOLDER)),
        "nnUNet_def_n_proc": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    python = tmp_path / "python"  # torchrun's workers
    python.write_text(f'#!/bin/sh\nexec {shlex.join(warm())} "$@"\n')
    python.chmod(0o755)
    outputs = _run_machines(2, {**environment, "PYTHON_EXEC": str(python)}, tmp_path, warm)

    fold = tiny_dataset.results / tiny_dataset.name / "nnUNetTrainerKilledOnce__nnUNetPlans__2d_tiny/fold_0"
    assert (tiny_dataset.results / "killed_1").exists()
    epochs = [re.findall(r": Epoch (\d+)", log.read_text()) for log in sorted(fold.glob("training_log_*.txt"))]
    assert [epoch for epoch in epochs if epoch] == [["0", "1", "2"], ["2", "3"]], outputs
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["current_epoch"] == EPOCHS
    assert checkpoint["ssl_state"]["iteration"] == 2 * EPOCHS
    assert {len(values) for values in checkpoint["logging"].values()} == {EPOCHS}
    summary = json.loads((fold / "validation/summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2
    assert not list(fold.glob("*.partial"))
    assert sum(output.count("Preprocessing 3 of 3 unlabeled scans") for output in outputs) <= 1


def _run_machines(number: int, environment: dict[str, str], folder: Path, warm: Callable[..., list[str]]) -> list[str]:
    """What torchrun prints on each; every one has to end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = warm(
        *("torchrun", "--nnodes", number, "--nproc_per_node", "1"),
        *("--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "test"),
        *("--local_addr", "127.0.0.1", "--max_restarts", "3"),
        *("-m", "nnunet_dvcl.train", "901", "2d_tiny", "0", "-tr", "nnUNetTrainerKilledOnce", "-device", "cpu"),
    )
    logs = [folder / f"machine_{machine}.log" for machine in range(number)]
    machines = []
    try:
        for log in logs:
            with open(log, "w") as file:
                machines.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
        for machine in machines:
            machine.wait(timeout=400)
    finally:
        for machine in machines:
            machine.terminate()  # torchrun ends its workers
            machine.wait()
    outputs = [log.read_text() for log in logs]
    assert [machine.returncode for machine in machines] == [0] * number, "\n".join(outputs)
    return outputs


# --------------------------------------------------------------------------- what a process does, here the only one

ARGUMENTS = ("901", "2d_tiny", "all", "-tr", "nnUNetTrainerDVCL", "-device", "cpu")


@pytest.fixture
def make(build_trainer, monkeypatch):
    """``make(*options, restarts=0, trainer=nnUNetTrainerDVCL)``: the trainer of a process."""

    def make_trainer(*options, restarts=0, trainer=nnUNetTrainerDVCL):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
        monkeypatch.setattr(train, "get_trainer_from_args", lambda *_: build_trainer(trainer, "2d_tiny"))
        return train._make_trainer(train._parser().parse_args([*ARGUMENTS, *options]))

    return make_trainer


@pytest.fixture
def earlier(make) -> Path:
    """A checkpoint of an earlier training, after its first epoch."""
    trainer = make()
    trainer.initialize()
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    return Path(trainer.output_folder) / "checkpoint_latest.pth"


def test_without_torchrun_it_says_how_to_start(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match=r"RANK.* not set.*\n  torchrun --nproc_per_node 2 -m nnunet_dvcl\.train"):
        train.main(ARGUMENTS)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="torch sees 1 GPUs"):
        train._join_group("cuda")


def test_the_gpu_is_the_local_rank(monkeypatch):
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(torch, "set_num_interop_threads", lambda number: None)
    monkeypatch.setattr(train.dist, "rendezvous", lambda *_, **__: iter([("store", 5, 8)]))
    monkeypatch.setattr(train.dist, "init_process_group", lambda backend, **_: chosen.append(backend))
    train._join_group("cuda")
    assert chosen == [1, "nccl"]


def test_a_new_training_starts_at_epoch_0(make):
    assert make().current_epoch == make(restarts=1).current_epoch == 0


def test_checkpoints_of_an_earlier_training_are_not_mistaken_for_its_own(make, earlier):
    with pytest.raises(UserError, match=r"holds checkpoints of an earlier training.*--c"):
        make()
    assert make("--c").current_epoch == 1


def test_a_restart_goes_on_and_does_not_load_pretrained_weights_again(make, earlier):
    trainer = make("-pretrained_weights", "nowhere.pth", restarts=1)
    assert trainer.current_epoch == 1


def test_pretrained_weights_are_loaded_as_long_as_there_is_no_checkpoint(make, monkeypatch):
    given = []
    monkeypatch.setattr(train, "maybe_load_checkpoint", lambda *arguments: given.append(arguments[1:]))
    make("-pretrained_weights", "there.pth")
    make("-pretrained_weights", "there.pth", restarts=1)
    assert given == [(False, False, "there.pth")] * 2


def test_machines_without_a_shared_folder_are_found_out(make, monkeypatch):
    gathered = iter([[0, 1], [0, 30]])
    monkeypatch.setattr(train, "gather_objects", lambda value: next(gathered))
    with pytest.raises(UserError, match=r"begin at epochs \[0, 30\]: nnUNet_results has to be"):
        make()


def test_one_restarted_machine_makes_all_go_on(make, earlier, monkeypatch):
    """torchrun counts the restarts of a machine for itself."""
    monkeypatch.setattr(train, "gather_objects", lambda value: [value, 1])
    assert make(restarts=0).current_epoch == 1


def test_nnunets_own_trainer_is_refused(make):
    with pytest.raises(UserError, match="not of nnunet_dvcl"):
        make(trainer=nnUNetTrainer)


def test_going_on_and_validating_exclude_each_other():
    with pytest.raises(SystemExit):
        train._parser().parse_args([*ARGUMENTS, "--c", "--val"])
