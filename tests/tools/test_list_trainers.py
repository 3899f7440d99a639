"""``nnunet_dvcl trainers``, and its table on the commands page."""

import re
from pathlib import Path

from nnunet_dvcl import trainers
from nnunet_dvcl.cli import main

TRAINING = [name for name in trainers.__all__ if name != "nnUNetTrainerSSL"]


def test_every_trainer_has_a_line_of_its_own(capsys):
    assert main(["trainers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    summaries = {name: lines[lines.index(name) + 1].strip() for name in TRAINING}
    assert all(summary.endswith(".") and len(summary) > 20 for summary in summaries.values())
    assert len(set(summaries.values())) == len(TRAINING)
    assert "nnUNetTrainerSSL" not in lines
    assert "nnUNetTrainerDVCL_20epochs" in lines[-1]


def test_the_summary_names_the_source():
    for name in TRAINING:
        summary = getattr(trainers, name).__doc__.splitlines()[0]
        assert re.search(r"Eq\.|Table|Figure|paper|nnUNetTrainer", summary), name


def test_the_commands_page_lists_every_trainer():
    page = (Path(__file__).parents[2] / "docs/reference/commands.md").read_text()
    assert sorted(re.findall(r"^\| `(nnUNetTrainer\w+)` \|", page, re.MULTILINE)) == sorted(TRAINING)
