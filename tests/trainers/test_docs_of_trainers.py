"""What docs/ says of the trainers: the logged values, and the example of a new method."""

import math
import re
from pathlib import Path

import pytest
import torch

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
def test_the_example_of_a_method_trains(start, tmp_path):
    (example,) = re.findall(r"^```python\n(.*?)^```", (DOCS / "how-to/add-a-method.md").read_text(), re.DOTALL | re.M)
    namespace = {"__name__": __name__}
    exec(example, namespace)
    trainer = start(namespace["nnUNetTrainerAveragedTeacher"])
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

    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    state = torch.load(tmp_path / "checkpoint.pth", weights_only=False)["ssl_state"]
    assert {key.partition(".")[0] for key in state["memory"]} == {"teacher"}
