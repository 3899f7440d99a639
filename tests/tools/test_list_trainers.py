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
    costs = {name: lines[lines.index(name) + 2].strip() for name in TRAINING}
    assert costs["nnUNetTrainerSupervised"] == "A step takes as long as nnU-Net's."
    assert costs["nnUNetTrainerCPS"].startswith("A step takes about 4.7 of nnU-Net's: 2 trained and 1 forward passes")
    assert costs["nnUNetTrainerDAN"].startswith("A step takes about 2.0 of nnU-Net's: 1 trained pass over twice")
    assert "nnUNetTrainerSSL" not in lines
    assert "nnUNetTrainerDVCL_20epochs" in lines[-1]


def test_the_summary_names_the_source():
    for name in TRAINING:
        summary = getattr(trainers, name).__doc__.splitlines()[0]
        assert re.search(r"Eq\.|Table|Figure|paper|nnUNetTrainer|\w+ et al\.,|\w+ & \w+,", summary), name
