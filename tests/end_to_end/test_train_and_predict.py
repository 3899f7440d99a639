"""Train, validate, predict, deploy: what a user types, from the first command to the last."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

pytestmark = pytest.mark.slow

SUPERVISED = {"train": ["case_0", "case_1", "case_2"], "val": ["case_5"]}
BLOCK = """
import os, sys

class NotHere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "nnunet_dvcl":
            raise ModuleNotFoundError("nnunet_dvcl is blocked", name=name)

sys.meta_path.insert(0, NotHere())
os.environ.pop("nnUNet_extTrainer", None)
"""


@pytest.fixture
def without_plugin(tmp_path):
    """``without_plugin(commands)``: the same in an environment that has only nnunetv2, child processes included."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked/sitecustomize.py").write_text(BLOCK)

    def block(commands):
        variables = {"PYTHONPATH": str(tmp_path / "blocked"), "nnUNet_extTrainer": ""}
        blocked = type(commands)(commands.tiny, variables)
        assert "is blocked" in blocked.run(sys.executable, "-c", "import nnunet_dvcl", fails=True)
        return blocked

    return block


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """What each model predicts beside the plugin."""
    folder = tmp_path_factory.mktemp("predicted")
    return {name: trained.predict(name, folder / name) for name in ("3d_short", "2d_short")}


@pytest.mark.parametrize("configuration", ["3d_short", "2d_short"])
def test_training_leaves_a_whole_model(trained, configuration):
    model = trained.model(configuration)
    fold = model / "fold_0"
    for name in ("checkpoint_final.pth", "checkpoint_best.pth", "debug.json", "validation/summary.json"):
        assert (fold / name).stat().st_size > 0
    for picture in ("progress.png", "progress_ssl.png"):
        assert (fold / picture).read_bytes().startswith(b"\x89PNG")
    assert not list(model.rglob("*.partial"))
    assert json.loads((model / "plans.json").read_text())["configurations"][configuration]["ssl"]["feature_dim"] == 8

    log = next(fold.glob("training_log_*.txt")).read_text()
    assert "Unlabeled cases: 3 of imagesTr_unlabeled, 2 of the split" in log
    assert "This split has 3 training and 1 validation cases" in log
    lines = [line for line in log.splitlines() if " ssl supervised_A " in line]
    assert len(lines) == 2
    for name in ("supervised_B", "cps", "hqcl", "dvcl", "total", "threshold_A", "queue_fill"):
        assert f" {name} " in lines[-1]


@pytest.mark.parametrize("configuration", ["3d_short", "2d_short"])
def test_the_final_checkpoint_is_nnunets_own_and_one_key(trained, configuration):
    checkpoint = trained.checkpoint(configuration)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    state = checkpoint["ssl_state"]
    assert (state["trainer"], state["iteration"]) == ("nnUNetTrainerDVCL", 4)
    assert state["companions"].keys() == {"B", "head_A", "head_B"}
    assert checkpoint["current_epoch"] == 2
    assert {len(values) for values in checkpoint["logging"].values()} == {2}


def test_only_the_validation_cases_are_validated(trained):
    summary = json.loads((trained.model("3d_short") / "fold_0/validation/summary.json").read_text())
    assert [Path(case["prediction_file"]).name for case in summary["metric_per_case"]] == ["case_5.nii.gz"]


@pytest.mark.parametrize("configuration", ["3d_short", "2d_short"])
def test_predicting_needs_no_plugin(after_training, predicted, without_plugin, tmp_path, configuration):
    workers = 1 if configuration == "3d_short" else 0
    alone = without_plugin(after_training).predict(configuration, tmp_path / "alone", workers)
    assert alone.keys() == {f"{scan}.nii.gz" for scan in after_training.tiny.scans}
    assert alone == predicted[configuration]
    for scan in after_training.tiny.scans:
        image = sitk.ReadImage(str(after_training.tiny.images / f"{scan}_0000.nii.gz"))
        prediction = sitk.ReadImage(str(tmp_path / f"alone/{scan}.nii.gz"))
        assert prediction.GetSize() == image.GetSize()
        assert set(np.unique(sitk.GetArrayFromImage(prediction))) <= {0, 1, 2}


def test_a_model_is_exported_and_installed_elsewhere(after_training, predicted, without_plugin, tmp_path):
    exported = tmp_path / "model.zip"
    after_training.run(
        *("nnUNetv2_export_model_to_zip", "-d", "901", "-o", exported, "-c", "3d_short"),
        *("-tr", "nnUNetTrainerDVCL", "-f", "0"),
    )
    results = tmp_path / "elsewhere"
    results.mkdir()
    elsewhere = without_plugin(after_training)
    elsewhere.variables["nnUNet_results"] = str(results)
    elsewhere.run("nnUNetv2_install_pretrained_model_from_zip", exported)
    assert {file.name for file in results.rglob("fold_0/*.pth")} == {"checkpoint_final.pth"}
    assert elsewhere.predict("3d_short", tmp_path / "there") == predicted["3d_short"]


def test_regions_and_an_ignore_label(regions_and_ignore, without_plugin, tmp_path):
    """From the first command to a prediction without the plugin."""
    commands = regions_and_ignore
    output = commands.train("2d_short")
    assert "was 0 for the whole epoch" not in output
    checkpoint = commands.checkpoint("2d_short")
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    memory = checkpoint["ssl_state"]["memory"]
    assert memory["queue.probabilities_rows"].shape[1] == 2 * 2
    assert len(memory["bank.features"]) == 3
    summary = json.loads((commands.model("2d_short") / "fold_0/validation/summary.json").read_text())
    assert summary["mean"].keys() == {"(1, 2)", "(2,)"}

    alone = without_plugin(commands).predict("2d_short", tmp_path / "alone")
    assert alone.keys() == {f"{scan}.nii.gz" for scan in commands.tiny.scans}
    for name in alone:
        assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "alone" / name))))) <= {0, 1, 2}


def test_validation_alone_writes_its_files_again(after_training):
    validation = after_training.model("3d_short") / "fold_0/validation"
    first = {file.name: file.read_bytes() for file in validation.glob("*.nii.gz")}
    for file in validation.iterdir():
        file.unlink()
    after_training.train("3d_short", "--val", "--npz")
    assert {file.name for file in validation.iterdir()} == {
        *("case_5.nii.gz", "case_5.npz", "case_5.pkl", "summary.json")
    }
    assert {file.name: file.read_bytes() for file in validation.glob("*.nii.gz")} == first
    probabilities = np.load(validation / "case_5.npz")["probabilities"]
    assert probabilities.shape[0] == 3
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-2)


def test_validation_with_the_best_checkpoint(after_training):
    """The best is made to differ from the final one: a network that sees label 2 everywhere."""
    best = after_training.model("3d_short") / "fold_0/checkpoint_best.pth"
    checkpoint = torch.load(best, weights_only=False)
    bias = [key for key in checkpoint["network_weights"] if "seg_layers" in key and key.endswith("bias")]
    for key in bias:
        checkpoint["network_weights"][key][2] += 100
    torch.save(checkpoint, best)
    after_training.train("3d_short", "--val", "--val_best")
    prediction = sitk.ReadImage(str(best.parent / "validation/case_5.nii.gz"))
    assert set(np.unique(sitk.GetArrayFromImage(prediction))) == {2}


def test_pretrained_weights_start_a_and_leave_b_random(after_training):
    """With a learning rate of next to nothing the end of training still shows its start."""
    given = after_training.model("3d_short") / "fold_0/checkpoint_final.pth"
    once = {"num_epochs": 1, "num_iterations_per_epoch": 1}
    after_training.configure("3d_pretrained", initial_lr=1e-12, **once)
    after_training.train("3d_pretrained", "-pretrained_weights", given)
    old = after_training.checkpoint("3d_short")["network_weights"]
    checkpoint = after_training.checkpoint("3d_pretrained")
    a, b = checkpoint["network_weights"], checkpoint["ssl_state"]["companions"]["B"]
    for key, weights in old.items():
        if ".seg_layers." in key:
            continue
        torch.testing.assert_close(a[key], weights, rtol=0, atol=1e-6)
        if key.endswith("conv.weight"):
            assert not torch.allclose(b[key], weights, atol=1e-3)


def test_no_unlabeled_case_ends_before_anything_is_trained(before_training):
    before_training.tiny.write_splits(SUPERVISED)
    for scan in before_training.tiny.images.iterdir():
        scan.unlink()
    output = before_training.train("3d_short", fails=True)
    message = output[output.index("There is no unlabeled case") :]
    assert "imagesTr_unlabeled" in message
    assert '"unlabeled": [' in message
    assert "splits_final.json" in message
    assert "Epoch 0" not in output
    assert not list(before_training.tiny.results.rglob("checkpoint*"))


def test_nnunets_own_trainer_ignores_the_unlabeled_cases_of_a_split(tiny_dataset):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    fold = {**SUPERVISED, "unlabeled": ["case_3", "case_4"]}
    tiny_dataset.write_splits(fold)
    plans = {**tiny_dataset.plans, "continue_training": False}
    trainer = nnUNetTrainer(plans, "3d_tiny", 0, tiny_dataset.dataset_json, torch.device("cpu"))
    assert trainer.do_split() == (fold["train"], fold["val"])
