"""Which commands are run where, what is never done twice, what a failure costs."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from nnunet_dvcl.cli import main
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.lock import acquire
from nnunet_dvcl.tools.experiment import prepare, runner
from nnunet_dvcl.tools.experiment.runner import run_experiment
from nnunet_dvcl.tools.experiment.runs import State, all_runs
from nnunet_dvcl.tools.running.command import Command

TEST = {"labeled": ["50%"], "folds": 2, "test": 0.34}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(runner, "_POLL", 0.02)


def states(place) -> dict[str, str]:
    return {run.name: place.state(run).value for run in all_runs(place.experiment)}


def test_the_runs_of_a_file(place):
    here = place(seeds=[0, 1], splits={"labeled": ["50%", "100%"], "folds": 3, "use": [0, 2]})
    runs = all_runs(here.experiment)
    assert len(runs) == len({run.name for run in runs}) == 2 * 2 * (2 + 1)
    assert runs[-1].assignments == ["batch_size=3", "ssl.num_epochs=2", "ssl.seed=1"]
    assert runs[0].name == "nnUNetTrainer__2d_small__50pct__fold0__seed0"
    assert {(r.amount.name, r.fold): r.split for r in runs} == {
        ("50pct", 0): 0, ("50pct", 2): 1, ("100pct", 0): 2, ("100pct", 2): 3,
    }  # fmt: skip
    assert {r.derived_configuration for r in runs if r.row.name == "DVCL"} == {
        "2d_small_DVCL_seed0",
        "2d_small_DVCL_seed1",
    }


@pytest.mark.parametrize("said_by", ["shell", "file"])
@pytest.mark.parametrize(("workers", "seen"), [("0", False), ("5", True)])
def test_nnunets_planner_never_has_zero_workers(place, monkeypatch, said_by, workers, seen):
    monkeypatch.setenv("nnUNet_n_proc_DA", workers if said_by == "shell" else "3")
    here = place(environment={"nnUNet_n_proc_DA": workers} if said_by == "file" else {})
    prepare._call(here, Command("env"), "plan")
    log = (here.folder / "logs" / "plan.log").read_text().splitlines()
    assert [line for line in log if line.startswith("nnUNet_n_proc_DA")] == [f"nnUNet_n_proc_DA={workers}"] * seen


def test_a_whole_experiment_and_nothing_twice(place, fakes, tiny_dataset, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "5")
    here = place(environment={"OWN": 7})
    assert run_experiment(here) == 0
    assert fakes.calls == [
        "train 901 2d_small_seed0 0 -tr nnUNetTrainer -p nnUNetPlans -device cpu",
        "train 901 2d_small_DVCL_seed0 0 -tr nnUNetTrainerDVCL -p nnUNetPlans -device cpu",
        "train 901 2d_small_seed0 1 -tr nnUNetTrainer -p nnUNetPlans -device cpu",
    ]
    assert fakes.environment("2d_small_seed0") == {"OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0", "OWN": "7"}
    assert set(states(here).values()) == {"finished"}
    configurations = tiny_dataset.plans["configurations"]
    assert configurations["2d_small_seed0"]["ssl"] == {"num_epochs": 2, "seed": 0}
    assert configurations["2d_small_DVCL_seed0"]["ssl"] == {"num_epochs": 2, "unlabeled_folder": False, "seed": 0}
    assert configurations["2d_small_seed0"]["batch_size"] == 3
    assert "Epoch 7" in here.log(all_runs(here.experiment)[0]).read_text()

    fakes.forget()
    assert run_experiment(here) == 0
    assert fakes.calls == []


def test_a_folder_that_configurations_share_is_preprocessed_once(place, fakes):
    """Each row and seed has a configuration of its own, and nnU-Net preprocesses all that it is given."""
    thick = {"from": "2d_tiny", "set": {"data_identifier": "thick", "spacing": [1.0, 2.0]}}
    thicker = {"from": "2d_tiny", "set": {"data_identifier": "thicker", "spacing": [2.0, 2.0]}}
    same = {"from": "2d_tiny", "set": {"batch_size": 3}}
    here = place(configurations={"thick": thick, "thicker": thicker, "same": same}, seeds=[0, 1])
    prepare.prepare(here)
    assert fakes.calls == ["preprocess -d 901 -plans_name nnUNetPlans -c thick_DVCL_seed0 thicker_DVCL_seed0"]


def test_unlabeled_scans_of_a_folder_that_configurations_share_are_preprocessed_once(place, monkeypatch):
    called = []
    monkeypatch.setattr(prepare, "_call", lambda place, command, name: called.append((name, str(command))))
    thick = {"from": "2d_tiny", "set": {"data_identifier": "thick", "spacing": [1.0, 2.0]}}
    prepare.prepare(place(configurations={"thick": thick}, trainers=["nnUNetTrainerDVCL"], seeds=[0, 1]))
    scans = [command for name, command in called if name == "preprocess_unlabeled"]
    assert scans == ["nnunet_dvcl preprocess -d 901 -p nnUNetPlans -c thick_seed0"]


def test_a_file_gets_few_lines_of_what_runs(place, fakes, capsys):
    """Not one at each look at the processes."""
    assert run_experiment(place()) == 0
    said = capsys.readouterr().err
    assert 1 <= said.count("Runs:") <= 6, said


def test_splits_are_nested_and_test_cases_are_in_none(place, fakes, tiny_dataset):
    here = place(splits={"labeled": ["50%", "100%"], "folds": 2, "test": 0.34})
    assert run_experiment(here, only_prepare=True) == 0
    few, everything = json.loads((tiny_dataset.preprocessed / "splits_final.json").read_text())
    test = json.loads((tiny_dataset.preprocessed / "test_cases.json").read_text())
    assert len(test) == 2
    assert few["val"] == everything["val"]
    assert set(few["train"]) < set(everything["train"])
    assert set(few["train"]) | set(few["unlabeled"]) == set(everything["train"])
    assert not set(test) & {case for fold in (few, everything) for names in fold.values() for case in names}
    assert sorted(os.listdir(here.test_images)) == [f"{case}_0000.nii.gz" for case in test]
    assert fakes.calls == []


def test_test_cases_are_predicted_by_the_last_checkpoint(place, fakes):
    here = place(splits=TEST, trainers="nnUNetTrainer")
    assert run_experiment(here) == 0
    (run,) = all_runs(here.experiment)
    _, predict = fakes.calls
    assert predict == (
        f"predict -i {here.test_images} -o {here.home(run)}/test -d 901 -c 2d_small_seed0 -f 0 -tr nnUNetTrainer "
        "-p nnUNetPlans -chk checkpoint_final.pth -device cpu --continue_prediction"
    )
    (here.home(run) / "test/experiment_run.json").unlink()  # broken off while it predicted
    assert here.state(run) is State.TRAINED
    fakes.forget()
    assert run_experiment(here) == 0
    assert fakes.calls == [predict]


def test_predictions_that_lack_a_case_are_a_failure(place, fakes):
    here = place(splits=TEST, trainers="nnUNetTrainer")
    (fakes.folder / "nnUNetv2_predict").write_text("#!/bin/sh\nmkdir -p $4\n")
    assert run_experiment(here) == 1
    assert set(states(here).values()) == {"failed"}


def test_a_failure_costs_only_its_run_and_is_shown(place, fakes, capsys):
    here = place()
    fakes.let("2d_small_DVCL_seed0", "touch $fold/checkpoint_best.pth; echo the reason; exit 3")
    assert run_experiment(here) == 1
    assert list(states(here).values()) == ["finished", "failed", "finished"]
    output = capsys.readouterr()
    name = "DVCL__2d_small__50pct__fold0__seed0"
    assert f"{name} ended with status 3" in output.out + output.err
    assert "the reason" in output.out + output.err
    assert "1 run(s) failed" in output.out

    fakes.forget()
    assert run_experiment(here) == 0
    assert fakes.calls == ["train 901 2d_small_DVCL_seed0 0 -tr nnUNetTrainerDVCL -p nnUNetPlans -device cpu --c"]
    assert set(states(here).values()) == {"finished"}
    assert not list(here.folder.rglob("*.failed"))


def test_a_training_that_only_lacks_its_validation_is_only_validated(place, fakes):
    here = place(trainers="nnUNetTrainer")
    fakes.let("2d_small_seed0", "touch $fold/checkpoint_final.pth; exit 1")
    assert run_experiment(here) == 1
    fakes.forget()
    assert run_experiment(here) == 0
    assert len(fakes.calls) == 2
    assert all(call.endswith(" --val") for call in fakes.calls)


def test_each_device_has_one_run_at_a_time(place, fakes):
    here = place(
        trainers=["nnUNetTrainer", "nnUNetTrainerSupervised", "nnUNetTrainerSupervised_5epochs"],
        splits={"labeled": ["50%"]},
    )
    busy = f"{fakes.folder}/busy.$CUDA_VISIBLE_DEVICES"
    fakes.let(
        "2d_small_seed0", f"mkdir {busy} || exit 1; sleep 0.3; rmdir {busy}; echo $7 {busy} >> {fakes.folder}/used"
    )
    start = time.perf_counter()
    assert run_experiment(here, devices=["cuda:3", "cuda:5"]) == 0
    assert time.perf_counter() - start > 0.6
    assert all(call.count("-device cuda") for call in fakes.calls)
    assert {line.split(".")[-1] for line in (fakes.folder / "used").read_text().splitlines()} == {"3", "5"}


def test_a_gpu_is_one_of_those_that_are_visible(place, fakes, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    here = place(trainers="nnUNetTrainer")
    assert run_experiment(here, devices=["cuda:1"]) == 0
    assert fakes.environment("2d_small_seed0")["CUDA_VISIBLE_DEVICES"] == "6"
    assert "nnUNet_n_proc_DA" in fakes.environment("2d_small_seed0")  # as the user has set it
    with pytest.raises(UserError, match="cuda:2 is not there: CUDA_VISIBLE_DEVICES is 4,6"):
        run_experiment(place(trainers="nnUNetTrainerSupervised"), devices=["cuda:2"])


def test_a_run_that_another_process_does_is_left_to_it(place, fakes, capsys):
    here = place()
    first = all_runs(here.experiment)[0]
    with acquire(here.lock(first)):
        assert here.state(first) is State.RUNNING
        assert run_experiment(here) == 0
    assert len(fakes.calls) == 2
    assert "1 run(s) are being done by another process" in capsys.readouterr().out
    assert here.state(first) is State.WAITING


@pytest.fixture
def started(place, fakes, write):
    """``experiment run`` of two trainings that take a minute: the command, and the trainings' process ids."""
    place()
    action = f"trap 'touch {fakes.folder}/ended.$5; exit 1' TERM; echo $$ > {fakes.folder}/pid.$5; sleep 60 & wait"
    fakes.let("2d_small_seed0", action)
    code = (
        "import sys; from nnunet_dvcl.tools.running import command as commands; from nnunet_dvcl.cli import main; "
        f"commands.sysconfig.get_path = lambda _: {str(fakes.folder)!r}; sys.exit(main(sys.argv[1:]))"
    )
    file = write(trainers=["nnUNetTrainer", "nnUNetTrainerSupervised"], devices=["cpu", "cpu"])
    command = [sys.executable, "-c", code, "experiment", "run", str(file)]

    def pids() -> list[int]:
        return [int(text) for file in fakes.folder.glob("pid.*") if (text := file.read_text().strip())]

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while len(pids()) < 2:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
        yield process, pids()
        process.kill()


def test_stopping_ends_the_trainings_which_can_clean_up(started, fakes):
    process, trainings = started
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130, output
    assert "Stopped. Called again, this command goes on." in output
    assert len(list(fakes.folder.glob("ended.*"))) == 2
    for training in trainings:
        with pytest.raises(ProcessLookupError):
            os.kill(training, 0)


def test_a_killed_runner_leaves_the_runs_to_their_trainings(started, place):
    """Nobody else starts the same training beside it."""
    process, trainings = started
    process.kill()
    process.wait()
    here = place(trainers=["nnUNetTrainer", "nnUNetTrainerSupervised"])
    assert list(states(here).values())[:2] == ["running", "running"]
    for training in trainings:
        os.killpg(training, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while "running" in states(here).values() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert set(states(here).values()) == {"waiting"}


# ---------------------------------------------------------------- what is refused


def test_splits_of_the_user_are_not_replaced(place, fakes, tiny_dataset):
    own = {"train": ["case_0"], "val": ["case_1"]}
    tiny_dataset.write_splits(own, own | {"unlabeled": ["case_2"]})
    with pytest.raises(UserError, match=r"holds other splits than the experiment draws\. It is not replaced"):
        run_experiment(place())
    assert json.loads((tiny_dataset.preprocessed / "splits_final.json").read_text())[0] == own

    here = place(splits={"keep": {"few": [1]}}, trainers=["nnUNetTrainer"])
    assert run_experiment(here) == 0
    assert " 2d_small_seed0 1 " in fakes.calls[0]
    with pytest.raises(UserError, match=r"has 2 entries, and splits\.keep\.few names 2"):
        run_experiment(place(splits={"keep": {"few": [2]}}, trainers="nnUNetTrainer"))


def test_results_of_other_values_or_cases_are_not_taken_for_these(place, fakes, tiny_dataset):
    here = place(trainers="nnUNetTrainer")
    assert run_experiment(here) == 0
    other = {"2d_small": {"from": "2d_tiny", "set": {"batch_size": 2, "ssl.num_epochs": 2}}}
    with pytest.raises(UserError, match=r"trained with other cases or values \(configuration\.batch_size\)"):
        run_experiment(place(trainers="nnUNetTrainer", configurations=other))
    (tiny_dataset.preprocessed / "splits_final.json").unlink()
    with pytest.raises(UserError, match=r"trained with other cases or values \(split\.train"):
        run_experiment(place(trainers="nnUNetTrainer", splits={"labeled": ["50%", "100%"], "folds": 2, "seed": 1}))


def test_results_that_no_experiment_made_are_not_taken(place, fakes):
    here = place(trainers="nnUNetTrainer")
    folder = here.home(all_runs(here.experiment)[0])
    folder.mkdir(parents=True)
    (folder / "checkpoint_best.pth").touch()
    with pytest.raises(UserError, match="has results that no experiment has made"):
        run_experiment(here)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainers": ["nnUNetTrainerDVLC"]}, "There is no trainer nnUNetTrainerDVLC"),
        ({"trainers": ["nnUNetTrainerSSL"]}, "There is no trainer nnUNetTrainerSSL"),
        ({"configurations": ["3d_lowres"]}, "have no configuration 3d_lowres"),
        ({"dataset": 902}, "No data set 902"),
        ({"plans": "nnUNetResEncUNetMPlans"}, "Make these plans first"),
        (
            {"trainers": [{"trainer": "nnUNetTrainerDVCL", "name": "D", "set": {"ssl.unlabeled_folder": False}}]},
            "D__2d_small__100pct__fold0__seed0 has no unlabeled case",
        ),
        ({"splits": {"labeled": [2], "test": "imagesTs"}, "trainers": "nnUNetTrainer"}, r"labelsTs has no labels"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(place, fakes, changes, message):
    with pytest.raises(UserError, match=message):
        run_experiment(place(**changes))
    assert fakes.calls == []


# ---------------------------------------------------------------- status, commands


def test_status(place, fakes, write, capsys):
    here = place()
    fakes.let("2d_small_DVCL_seed0", "exit 3")
    run_experiment(here, [run.name for run in all_runs(here.experiment)[:2]])
    capsys.readouterr()
    assert main(["experiment", "status", str(write())]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "finished  nnUNetTrainer__2d_small__50pct__fold0__seed0"
    assert lines[1].startswith("failed    DVCL__2d_small__50pct__fold0__seed0  ")
    assert lines[-1] == "3 runs: 1 waiting, 1 finished, 1 failed"


def test_commands_for_a_queue(place, fakes, write, capsys):
    place()
    file = write(splits=TEST)
    assert main(["experiment", "commands", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"nnunet_dvcl experiment run {file} --runs nnUNetTrainer__2d_small__50pct__fold0__seed0 --devices cpu"
    )
    assert len(lines) == 2
    assert main(["experiment", "commands", str(file), "--nnunet"]) == 0
    train, predict = capsys.readouterr().out.splitlines()[1].split(" && ")
    assert train == "nnUNetv2_train 901 2d_small_DVCL_seed0 0 -tr nnUNetTrainerDVCL -p nnUNetPlans -device cpu --c"
    assert predict.startswith("nnUNetv2_predict -i ")
    assert fakes.calls == []


def test_an_unknown_run(place, fakes):
    with pytest.raises(UserError, match="There is no run x"):
        run_experiment(place(), ["x"])
