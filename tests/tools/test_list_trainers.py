"""``nnunet_dvcl trainers``."""

import re

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
        assert re.search(r"Eq\.|Table|Figure|paper|nnUNetTrainer|\w+ et al\.,|\w+ & \w+,", summary), name
