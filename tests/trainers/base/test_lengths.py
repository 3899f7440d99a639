"""``<trainer>_<N>epochs``: one mechanism for every trainer and every number."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunet_dvcl import _register, trainers
from nnunet_dvcl.errors import UserError


@pytest.mark.parametrize("number", [1, 5, 20, 100, 250])
@pytest.mark.parametrize("name", trainers.__all__)
def test_every_trainer_has_every_length(name, number):
    trainer = getattr(trainers, f"{name}_{number}epochs")
    assert trainer.__name__ == trainer.__qualname__ == f"{name}_{number}epochs"
    assert issubclass(trainer, getattr(trainers, name))
    assert trainer is getattr(trainers, f"{name}_{number}epochs")
    assert pickle.loads(pickle.dumps(trainer)) is trainer


@pytest.mark.parametrize(
    "name",
    [
        *("nnUNetTrainerDVCL_epochs", "nnUNetTrainerDVCL_0epochs", "nnUNetTrainerDVCL_05epochs"),
        *("nnUNetTrainerDVCL_5epochs_5epochs", "nnUNetTrainerOther_5epochs", "nnUNetTrainer_5epochs"),
        *("trainer_of_length_5epochs", "nnUNetTrainerDVCL_5epochs_"),
    ],
)
def test_no_other_name_is_made_up(name):
    assert not hasattr(trainers, name)


def test_lengths_are_not_among_the_listed_names():
    assert trainers.nnUNetTrainerCPS_5epochs.__name__ not in trainers.__all__


def test_nnunet_finds_the_same_class_each_time(monkeypatch):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

    monkeypatch.setenv(_register.VARIABLE, _register.FOLDER)
    for name in ("nnUNetTrainerDVCL_20epochs", "nnUNetTrainerCPS_HqCL_5epochs", "nnUNetTrainerSupervised_7epochs"):
        assert find(name) is find(name) is getattr(trainers, name)
    with pytest.raises(RuntimeError, match="nnUNetTrainerDVCL_0epochs"):
        find("nnUNetTrainerDVCL_0epochs")
    # its own are its own
    assert find("nnUNetTrainer_5epochs").__module__.startswith("nnunetv2.")


def test_another_process_unpickles_it():
    data = pickle.dumps(trainers.nnUNetTrainerDVCL_20epochs)
    code = f"import pickle; print(pickle.loads({data!r}).fixed_num_epochs)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "20"


def test_the_number_wins_over_the_plans_and_says_so(build_trainer):
    trainer = build_trainer(trainers.nnUNetTrainerDVCL_5epochs, num_epochs=7)
    trainer.initialize()
    assert trainer.num_epochs == trainer.config.num_epochs == trainer.lr_scheduler.max_steps == 5
    log = Path(trainer.log_file).read_text()
    uses = next(line for line in log.splitlines() if "nnUNetTrainerDVCL_5epochs uses" in line)
    assert json.loads(uses[uses.index("{") :])["num_epochs"] == 5
    assert "nnUNetTrainerDVCL_5epochs trains for 5 epochs, as its name says; ssl.num_epochs = 7" in log


def test_nothing_is_said_where_there_is_nothing_to_say(build_trainer):
    trainer = build_trainer(trainers.nnUNetTrainerSupervised_2epochs, num_epochs=2)
    trainer.initialize()
    assert "does not count" not in Path(trainer.log_file).read_text()


def test_the_length_is_saved_and_resumed(start, build_trainer, tmp_path):
    file = str(tmp_path / "checkpoint.pth")
    trainer = start(trainers.nnUNetTrainerCPS_5epochs)
    trainer.save_checkpoint(file)
    checkpoint = torch.load(file, weights_only=False)
    assert checkpoint["ssl_state"]["config"] == trainer.config.model_dump()
    assert checkpoint["ssl_state"]["config"]["num_epochs"] == 5
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    build_trainer(trainers.nnUNetTrainerCPS_5epochs, num_epochs=9).load_checkpoint(file)
    with pytest.raises(UserError, match="checkpoint of nnUNetTrainerCPS_5epochs, this run is nnUNetTrainerCPS_6epochs"):
        build_trainer(trainers.nnUNetTrainerCPS_6epochs).load_checkpoint(file)
