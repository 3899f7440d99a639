"""Trainers of the user's own, in a folder that nnUNet_extTrainer names: their keys are known too."""

import os
import re
from pathlib import Path

import pytest

from nnunet_dvcl import _register
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.configure import configure
from nnunet_dvcl.trainers.base import SSLConfig
from nnunet_dvcl.trainers.base.config import check_ssl, known_options
from nnunet_dvcl.trainers.base.external import import_external_trainers

PAGE = Path(__file__).parents[3] / "docs/how-to/add-a-method.md"


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A folder with the copy-paste example under another key, a trainer that is broken, and a value of a known key."""
    (example,) = (e for e in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.M) if "pasted" in e)
    folder = tmp_path / "own"
    folder.mkdir()
    own = example.replace("pasted_", "own_").replace(
        "own_weight: Weight = 0.25", "own_weight: Weight = 0.25\n    teacher_decay: Weight = 2.0"
    )
    (folder / "nnUNetTrainerOwn.py").write_text(own)
    (folder / "nnUNetTrainerBroken.py").write_text("import no_such_module\n")
    monkeypatch.setenv(_register.VARIABLE, os.pathsep.join([_register.FOLDER, str(folder)]))
    import_external_trainers.cache_clear()
    yield folder
    import_external_trainers.cache_clear()


def test_a_key_of_an_own_trainer_is_known_and_checked(own_folder):
    check_ssl({"own_share": 0.5, "num_epochs": 3})
    assert SSLConfig.from_plans({"ssl": {"own_share": 0.5, "num_epochs": 3}}).num_epochs == 3
    with pytest.raises(UserError, match=r"ssl\.own_share is 2, expected a number in \[0, 1\]"):
        check_ssl({"own_share": 2})
    with pytest.raises(UserError, match=r"Unknown key ssl\.own_shar .*Did you mean ssl\.own_share\?"):
        check_ssl({"own_shar": 0.5})


def test_two_trainers_may_have_a_key_with_ranges_of_their_own(own_folder):
    check_ssl({"own_share": 0.5})  # looks into the folder
    assert len({str(field) for field in known_options()["teacher_decay"]}) > 1
    check_ssl({"teacher_decay": 2.0})  # of one of them
    with pytest.raises(
        UserError, match=r"teacher_decay is -1.0, expected a number in \[0, 1\] or a number of at least 0"
    ):
        check_ssl({"teacher_decay": -1.0})


def test_configure_knows_it(own_folder, tiny_dataset):
    configure(tiny_dataset.name, "2d_tiny", "2d_own", "nnUNetPlans", ["ssl.own_share=0.4"])
    assert tiny_dataset.plans["configurations"]["2d_own"]["ssl"]["own_share"] == 0.4


def test_without_the_folder_the_key_is_unknown(monkeypatch):
    monkeypatch.setenv(_register.VARIABLE, _register.FOLDER)
    import_external_trainers.cache_clear()
    with pytest.raises(UserError, match=r"Unknown key ssl\.no_ones_share"):
        check_ssl({"no_ones_share": 0.5})
