"""``nnunet_dvcl inspect``: what a checkpoint holds is printed; code in it is never run."""

import os
import re
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dvcl.cli import main
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.inspection import describe, read_plain
from nnunet_dvcl.trainers import nnUNetTrainerDVCL


@pytest.fixture
def file(tmp_path):
    return str(tmp_path / "checkpoint.pth")


@pytest.fixture
def checkpoint(file):
    """A small one as nnU-Net writes it, saved to `file`."""
    content = {
        "network_weights": {"conv.weight": torch.ones(2, 3)},
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.ones(2, 3)}}, "param_groups": [{"lr": 0.01}]},
        "logging": {"dice_per_class_or_region": [[np.float32(0.25), np.float64(0.5)]]},
        "_best_ema": np.float32(0.375),
        "current_epoch": 7,
        "init_args": {
            "plans": {"dataset_name": "Dataset901_Tiny", "plans_name": "nnUNetPlans"},
            "configuration": "3d_tiny",
            "fold": 0,
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
    }
    torch.save(content, file)
    return content


def printed(capsys) -> dict[str, list[str]]:
    """First word of a line -> the others."""
    return {words[0]: words[1:] for line in capsys.readouterr().out.splitlines() if (words := line.split())}


def test_a_checkpoint_of_dvcl(start, file, capsys):
    trainer = start(nnUNetTrainerDVCL, optimizer="adamw")
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train))])
    with torch.no_grad():
        trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val))])
    trainer._best_ema = trainer.logger.get_value("ema_fg_dice", step=-1)
    trainer.save_checkpoint(file)
    capsys.readouterr()

    assert main(["inspect", file]) == 0
    lines = printed(capsys)
    assert lines["trainer"] == ["nnUNetTrainerDVCL"]
    assert lines["predicted"] == ["with", "nnUNetTrainer"]
    assert lines["data"] == ["set", "Dataset901_Tiny"]
    assert (lines["plans"], lines["configuration"], lines["fold"]) == (["nnUNetPlans"], ["3d_tiny"], ["all"])
    assert lines["epochs"] == ["done", "1", "of", "2"]
    assert lines["iterations"] == ["2"]
    assert lines["best"][-1] == f"{trainer._best_ema:.4f}"
    assert len(lines["last"]) == 4 + 2

    weights = sum(p.numel() for p in trainer.network.state_dict().values())
    assert lines["network_weights"][0] == lines["companions.B"][0] == f"{weights:,}"
    assert lines["network_weights"][1] == f"{4 * weights / 2**20:.2f}"
    assert lines["companions.head_A"][0] == str(sum(p.numel() for p in trainer.companions["head_A"].parameters()))
    bank, queue = trainer.memory["bank"], trainer.memory["queue"]
    assert lines["memory.bank"][0] == f"{3 * 64 * 8 + 6:,}"
    assert lines["bank:"] == ["filled", "rows", "of", "64,", "class", "by", "class:", *map(str, bank.count.tolist())]
    assert lines["queue:"] == ["filled", "rows", "of", "128:", str(len(queue))]
    assert 0 < len(queue) < 128
    assert lines["ssl.num_neighbors"] == ["=", "5"]
    assert lines["ssl.optimizer"] == ["=", "adamw"]


def test_what_we_add_are_tensors_and_plain_values(start, file):
    trainer = start(nnUNetTrainerDVCL)
    trainer.train_step(next(trainer.dataloader_train))
    trainer.save_checkpoint(file)
    state = torch.load(file, weights_only=False)["ssl_state"]
    torch.save(state, file)
    assert torch.load(file, weights_only=True).keys() == state.keys()


def test_a_checkpoint_of_plain_nnunet(build_trainer, file, capsys):
    trainer = build_trainer(nnUNetTrainer)
    trainer.initialize()
    trainer.save_checkpoint(file)
    capsys.readouterr()
    assert main(["inspect", file]) == 0
    lines = printed(capsys)
    assert lines["trainer"] == ["nnUNetTrainer"]
    assert lines["epochs"] == ["done", "1"]
    assert lines["best"][-2:] == ["none", "yet"]
    assert not [name for name in lines if name.startswith(("ssl.", "companions", "memory", "bank"))]


def test_numbers_and_sizes(checkpoint, file, capsys):
    assert main(["inspect", file]) == 0
    lines = printed(capsys)
    assert lines["last"][-2:] == ["0.2500", "0.5000"]
    assert lines["best"][-1] == "0.3750"
    assert lines["network_weights"][0] == lines["optimizer_state"][0] == "6"


def test_scalars_of_numpy_1_and_2_are_read(checkpoint, file):
    """They have the name of the other version in the file."""
    for old, new in ((b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")):
        with zipfile.ZipFile(file) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        pickled = next(name for name in parts if name.endswith("data.pkl"))
        parts[pickled] = parts[pickled].replace(old, new)
        assert new in parts[pickled]
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        assert read_plain(file)["_best_ema"] == np.float32(0.375)


def test_a_models_folder_shows_the_newest_checkpoint_of_each_fold(checkpoint, train, capsys):
    model = train(content=checkpoint, checkpoint="checkpoint_best.pth")
    train(content=checkpoint | {"current_epoch": 7}, checkpoint="checkpoint_latest.pth")
    train(content=checkpoint, fold=1)
    files = [f"{model}/fold_0/checkpoint_latest.pth", f"{model}/fold_1/checkpoint_final.pth"]
    for folder, shown in ((model, files), (model / "fold_1", files[1:])):
        assert main(["inspect", str(folder)]) == 0
        assert [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(model))] == shown
    assert main(["inspect", str(model.parent)]) == 1
    assert "has no checkpoint" in capsys.readouterr().err


class Attack:
    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", ["network_weights", "_best_ema", "ssl_state", "anything else"])
@pytest.mark.parametrize(
    "call", [(os.mkdir,), (exec, "import os; os.mkdir('{}')"), (eval, "__import__('os').mkdir('{}')")]
)
def test_code_is_never_run(checkpoint, file, tmp_path, capsys, place, call):
    trap = tmp_path / "trap"
    function, *text = call
    attack = Attack(function, *(line.format(trap) for line in text)) if text else Attack(function, str(trap))
    torch.save(checkpoint | {place: {"x": attack}}, file)
    assert main(["inspect", file]) == 1
    assert not trap.exists()
    message = capsys.readouterr().err
    assert re.search(r"holds more than tensors and plain values \((posix\.mkdir|exec|eval)\)", message)
    assert "Traceback" not in message
    torch.load(file, weights_only=False)
    assert trap.exists(), "the trap works"


def test_objects_are_not_made(checkpoint, file):
    torch.save(checkpoint | {"network_weights": torch.nn.Linear(1, 1)}, file)
    with pytest.raises(UserError, match=r"\(torch\.nn\.modules\.linear\.Linear\)"):
        read_plain(file)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x05\x06" + bytes(18)])
def test_other_files(file, content):
    with open(file, "wb") as handle:
        handle.write(content)
    with pytest.raises(UserError, match="is damaged, or no checkpoint"):
        read_plain(file)


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_truncated(checkpoint, file, share):
    os.truncate(file, int(share * os.path.getsize(file)))
    with pytest.raises(UserError, match="is damaged, or no checkpoint"):
        read_plain(file)


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.pth"):
        with pytest.raises(UserError, match="does not exist, or is no file"):
            read_plain(str(path))


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.ones(3)])
def test_checkpoints_of_others(file, content):
    torch.save(content, file)
    with pytest.raises(UserError, match=r"is no checkpoint of nnU-Net: it has no .*network_weights"):
        read_plain(file)


def test_an_old_pytorch_says_what_it_needs(checkpoint, file, monkeypatch):
    monkeypatch.delattr(torch.serialization, "get_unsafe_globals_in_checkpoint")
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(UserError, match=r"needs PyTorch 2\.6"):
        read_plain(file)


def test_names_are_no_commands_for_the_terminal(checkpoint):
    checkpoint["trainer_name"] = "nnUNet\x1b[31m\nTrainer\u202e"
    text = describe("file", checkpoint)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "nnUNet?[31m?Trainer?" in text


STATE = {"trainer": "nnUNetTrainerCPS", "config": {"num_epochs": 3}, "iteration": 1, "companions": {}, "memory": {}}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(torch.ones(2)),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
PLACES = [("logging",), ("_best_ema",), ("current_epoch",), ("init_args",), ("init_args", "plans"), ("ssl_state",)]
PLACES += [("ssl_state", key) for key in STATE] + [("network_weights",), ("logging", "dice_per_class_or_region")]


@settings(max_examples=100, deadline=None)
@example(place=("logging", "dice_per_class_or_region"), value=torch.ones(2))  # no truth value
@example(place=("_best_ema",), value=10**400)  # no float
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_any_plain_values_are_described_or_refused(place, value):
    checkpoint = {
        "network_weights": {},
        "logging": {"dice_per_class_or_region": []},
        "_best_ema": None,
        "current_epoch": 1,
        "init_args": {"plans": {"dataset_name": "a", "plans_name": "b"}, "configuration": "c", "fold": 0},
        "trainer_name": "nnUNetTrainer",
        "ssl_state": dict(STATE),
    }
    *parents, last = place
    holder = checkpoint
    for parent in parents:
        holder = holder[parent]
    holder[last] = value
    try:
        assert describe("file", checkpoint).startswith("file\n")
    except UserError as error:
        assert "is no checkpoint of nnU-Net" in str(error)  # noqa: PT017
