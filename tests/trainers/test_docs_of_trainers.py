"""What docs/ says of the trainers: the logged values, and the example of a new method."""

import math
import re
from pathlib import Path

import pytest
import torch
from examples import example_of_the_docs

from nnunet_dvcl.networks import unwrap
from nnunet_dvcl.trainers import nnUNetTrainerCPS, nnUNetTrainerCPS_HqCL, nnUNetTrainerDVCL

DOCS = Path(__file__).parents[2] / "docs"


def _run_steps(trainer, number: int = 2) -> list[dict]:
    outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(number)]
    trainer.on_train_epoch_end(outputs)
    return outputs


@pytest.mark.parametrize(
    ("trainer_class", "name"),
    [(nnUNetTrainerCPS, "CPS"), (nnUNetTrainerCPS_HqCL, "HqCL"), (nnUNetTrainerDVCL, "DVCL")],
)
def test_the_logging_page_lists_what_is_logged(start, trainer_class, name):
    rows = re.findall(r"^\| `(ssl/\w+)` \| ([^|]+) \|", (DOCS / "reference/logging.md").read_text(), re.MULTILINE)
    trainer = start(trainer_class)
    _run_steps(trainer)
    logged = {key for key in trainer.logger.get_checkpoint() if key.startswith("ssl/")}
    assert logged == {key for key, trainers in rows if name in trainers.split(", ")}


def test_the_logging_page_gives_the_reasons_for_zero(start):
    page = (DOCS / "reference/logging.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w[^|]+) \|$", page.partition("## Warnings")[2], re.MULTILINE)
    trainer = start(nnUNetTrainerDVCL)
    assert [term for term, _ in rows] == ["cps", "hqcl", "dvcl"]
    for term, reason in rows:
        assert trainer.why_zero(term).startswith(reason)
    assert f"WARNING: ssl/hqcl was 0 for the whole epoch: {trainer.why_zero('hqcl')}." in page


@pytest.mark.parametrize("label_mode", ["labels", "regions + ignore"])
def test_the_mean_teacher_of_the_docs_trains(start, tmp_path):
    trainer = start(example_of_the_docs("nnUNetTrainerMeanTeacher"))
    teacher = trainer.memory["teacher"]
    before = torch.nn.utils.parameters_to_vector(teacher.parameters()).clone()
    student = torch.nn.utils.parameters_to_vector(unwrap(trainer.network).parameters()).detach()
    assert torch.equal(before, student)

    outputs = _run_steps(trainer, 3)
    assert all(math.isfinite(output["total"]) for output in outputs)
    assert outputs[-1]["consistency"] > 0
    after = torch.nn.utils.parameters_to_vector(teacher.parameters())
    student = torch.nn.utils.parameters_to_vector(unwrap(trainer.network).parameters()).detach()
    assert 0 < (after - before).norm() < (student - before).norm()
    assert {"ssl/consistency", "ssl/rampup"} <= set(trainer.logger.get_checkpoint())
    weighted = outputs[-1]["supervised_A"] + 2 * 0.1 * outputs[-1]["rampup"] * outputs[-1]["consistency"]
    assert outputs[-1]["total"] == pytest.approx(weighted), "nnU-Net's loss is twice the papers'"

    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    checkpoint = torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    assert {key.partition(".")[0] for key in checkpoint["ssl_state"]["memory"]} == {"teacher"}
    saved = trainer.saved_networks(checkpoint)
    assert list(saved) == list(trainer.networks()) == ["A", "teacher"]
    for name, network in trainer.networks().items():
        assert all(torch.equal(saved[name][key], value) for key, value in unwrap(network).state_dict().items())


@pytest.mark.parametrize("label_mode", ["labels", "ignore", "regions + ignore"])
@pytest.mark.parametrize("configuration", ["2d_tiny", "3d_tiny"])
def test_the_copy_paste_of_the_docs_trains(start, configuration, label_mode):
    trainer = start(example_of_the_docs("nnUNetTrainerCopyPaste"), configuration)
    outputs = _run_steps(trainer, 3)
    assert all(math.isfinite(output["total"]) for output in outputs)
    assert outputs[-1]["pasted"] != 0
    assert outputs[-1]["total"] == pytest.approx(outputs[-1]["supervised_A"] + 2 * 0.25 * outputs[-1]["pasted"])
