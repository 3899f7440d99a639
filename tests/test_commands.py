"""The lines that messages tell the user to run."""

import pytest
import torch

from nnunet_dvcl.commands import dataset_number, train_command
from nnunet_dvcl.data.folders import find_plans_file
from nnunet_dvcl.errors import UserError


def test_nnunet_reads_what_it_is_told(nnunet_trains, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    trained = nnunet_trains(train_command("Dataset501_My organs", "3d_own", "all", "nnUNetTrainerCPS", "My plans"))
    assert list(trained.values())[:5] == ["Dataset501_My organs", "3d_own", "all", "nnUNetTrainerCPS", "My plans"]
    assert trained["device"] == torch.device("cpu")


def test_nnunet_plans_by_number():
    assert [dataset_number(name) for name in ("Dataset042_Organs", "Dataset501_x", "Data")] == ["42", "501", "Data"]


def test_how_to_make_plans_that_are_not_there(tiny_dataset):
    for dataset in ("901", tiny_dataset.name):
        with pytest.raises(UserError, match=r"Planz\.json does not exist\. Did you mean nnUNetPlans\?") as error:
            find_plans_file(dataset, "nnUNetPlanz")
        assert str(error.value).endswith(
            "run nnUNetv2_plan_and_preprocess -d 901 with the planner that makes them (-pl), or with "
            "-overwrite_plans_name nnUNetPlanz."
        )
    (tiny_dataset.preprocessed / "nnUNetPlans.json").unlink()
    with pytest.raises(
        UserError, match=r"nnUNetPlans\.json does not exist: run nnUNetv2_plan_and_preprocess -d 901\.$"
    ):
        find_plans_file(tiny_dataset.name, "nnUNetPlans")
