"""A model that plain nnU-Net loads, which predicts what the trained networks predict."""

import json
import os
import pickle
import shlex
import zipfile
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from nnunet_dvcl.cli import main
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.export import model as export
from nnunet_dvcl.tools.export.comparison import compare_networks, preprocessed_validation_cases
from nnunet_dvcl.tools.export.model import export_model
from nnunet_dvcl.trainers import nnUNetTrainerCPS, nnUNetTrainerSupervised

SPLIT = {"train": ["case_0", "case_1"], "val": ["case_4", "case_5"], "unlabeled": ["case_2"]}


@pytest.fixture
def train(tiny_dataset, start, monkeypatch):
    """``train(trainer, configuration, fold)``: a model's folder after training, two networks that differ."""
    tiny_dataset.write_splits(SPLIT, SPLIT)
    monkeypatch.setattr("multiprocessing.get_context", lambda *_: SimpleNamespace(Pool=lambda _: ThreadPool(1)))

    def write(trainer=nnUNetTrainerCPS, configuration="3d_tiny", fold=0):
        trained = start(trainer, configuration, fold)
        trained.save_checkpoint(os.path.join(trained.output_folder, "checkpoint_final.pth"))
        with open(os.path.join(trained.output_folder, "progress.png"), "wb") as file:
            file.write(b"a picture")
        return trained

    return write


def load(file):
    return torch.load(file, map_location="cpu", weights_only=False)


def logits(network, patch):
    network.decoder.deep_supervision = False
    with torch.inference_mode():
        return network.eval()(patch[None])[0]


def predictor(folder, folds):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    made = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, use_gaussian=False, allow_tqdm=False)
    made.initialize_from_trained_model_folder(str(folder), folds)
    return made


def same(weights, state):
    return weights.keys() == state.keys() and all(torch.equal(weights[key], state[key]) for key in state)


@pytest.mark.parametrize("configuration", ["3d_tiny", "2d_tiny"])
@pytest.mark.parametrize(("network", "names"), [("a", "A"), ("b", "B"), ("both", "AB")])
def test_an_export_predicts_what_the_networks_predict(train, tmp_path, network, names, configuration):
    trainer = train(configuration=configuration)
    to = tmp_path / "new" / "exported"
    assert export_model(trainer.output_folder_base, network, str(to), compare=False) == str(to)
    assert sorted(path.name for path in to.glob("fold_*")) == [f"fold_{i}" for i in range(len(names))]
    patch = torch.randn(1, *trainer.configuration_manager.patch_size)
    students = trainer.students()
    expected = sum(logits(students[name], patch) for name in names) / len(names)
    found = predictor(to, tuple(range(len(names)))).predict_logits_from_preprocessed_data(
        patch if configuration == "3d_tiny" else patch[:, None]
    )
    found = (found if configuration == "3d_tiny" else found[:, 0]).float()  # nnU-Net keeps logits in half precision
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)
    for number, name in enumerate(names):
        checkpoint = load(to / f"fold_{number}" / "checkpoint_final.pth")
        assert same(checkpoint.pop("network_weights"), students[name].state_dict())
        assert checkpoint.pop("init_args")["configuration"] == configuration
        assert checkpoint == {
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": trainer.inference_allowed_mirroring_axes,
        }
    assert not list(to.parent.glob("*.partial"))
    for file in ("plans.json", "dataset.json"):
        assert (to / file).read_text() == Path(trainer.output_folder_base, file).read_text()


def test_the_two_networks_differ(train):
    """Else the tests above could not tell them apart."""
    students = train().students()
    assert not same(students["A"].state_dict(), students["B"].state_dict())


def test_nothing_of_this_package_is_needed_to_load_it(train, tmp_path):
    """That nnU-Net alone predicts with such a trainer name and such weights is tests/end_to_end's."""
    trainer = train()
    export_model(trainer.output_folder_base, "both", str(tmp_path / "exported"), compare=False)
    for file in tmp_path.glob("exported/fold_*/checkpoint_final.pth"):
        with zipfile.ZipFile(file) as archive:
            (pickled,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
            assert b"nnunet_dvcl" not in archive.read(pickled)


def test_the_better_network_is_told_and_scored_as_nnunet_scores(train, tmp_path, capsys):
    trainer = train()
    b = trainer.companions["B"]
    with torch.no_grad():  # B says background everywhere, A something
        b.decoder.seg_layers[-1].weight.zero_()
        b.decoder.seg_layers[-1].bias.copy_(torch.tensor([100.0, 0.0, 0.0]))
        a = trainer.network.decoder.seg_layers[-1]
        a.weight.zero_()
        a.bias.copy_(torch.tensor([0.0, 50.0, 0.0]))
    trainer.save_checkpoint(os.path.join(trainer.output_folder, "checkpoint_final.pth"))
    assert main(["export", trainer.output_folder_base, "--network", "both", "--to", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    summaries = [json.loads((tmp_path / f"out/fold_{i}/validation/summary.json").read_text()) for i in range(2)]
    large = np.mean([dice_of_the_whole_image(trainer, case, 1) for case in SPLIT["val"]])
    assert summaries[0]["mean"]["1"]["Dice"] == pytest.approx(large)
    assert [s["foreground_mean"]["Dice"] for s in summaries] == [pytest.approx(large / 2), 0]
    cases = [Path(c["prediction_file"]).name for c in summaries[1]["metric_per_case"]]
    assert (
        cases == [c["prediction_file"] for c in summaries[1]["metric_per_case"]] == ["case_4.nii.gz", "case_5.nii.gz"]
    )
    assert f"Mean Dice on the 2 validation cases of fold 0: A {large / 2:.4f}, B 0.0000, averaged 0.0000" in printed
    assert "The better of A and B: A." in printed
    assert "-f 0 1" in printed


def dice_of_the_whole_image(trainer, case, label):
    """Of a prediction that is `label` wherever nnU-Net does not crop the image."""
    import SimpleITK as sitk

    folder = Path(trainer.preprocessed_dataset_folder_base)
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "gt_segmentations" / f"{case}.nii.gz"))) == label
    properties = pickle.loads((folder / "nnUNetPlans_3d_fullres" / f"{case}.pkl").read_bytes())
    size = np.prod([last - first for first, last in properties["bbox_used_for_cropping"]])
    return 2 * truth.sum() / (truth.sum() + size)


def test_the_verdict_names_the_better_one_whichever_it_is():
    def verdict(a, b):
        dice = {"A": a, "B": b, "averaged": 0.5}
        summaries = {k: {"foreground_mean": {"Dice": v}, "metric_per_case": [1, 2, 3]} for k, v in dice.items()}
        return export._verdict(summaries, 2)

    assert verdict(0.25, 0.75) == (
        "Mean Dice on the 3 validation cases of fold 2: A 0.2500, B 0.7500, averaged 0.5000. The better of A and B: B."
    )
    assert verdict(0.75, 0.25).endswith("The better of A and B: A.")
    assert verdict(0.25, 0.25).endswith("The better of A and B: neither.")


@pytest.mark.parametrize("label_mode", ["regions + ignore"])
def test_regions_are_compared(train):
    trainer = train()
    source = export._read_source(trainer.output_folder_base, None, "checkpoint_final.pth")
    made = predictor(trainer.output_folder_base, (0,))
    summaries = compare_networks(made, source.networks, *preprocessed_validation_cases(made, 0))
    assert list(summaries) == ["A", "B", "averaged"]
    assert all(len(summary["metric_per_case"]) == 2 for summary in summaries.values())
    assert (1, 2) in made.label_manager.foreground_regions
    assert all((1, 2) in summary["mean"] for summary in summaries.values())


def test_a_zip_of_nnunet_holds_it(train, tiny_dataset, tmp_path, monkeypatch):
    from nnunetv2.model_sharing.model_export import export_pretrained_model

    trainer = train()
    monkeypatch.setattr("nnunetv2.model_sharing.model_export.nnUNet_results", str(tiny_dataset.results))
    to = tiny_dataset.results / tiny_dataset.name / "nnUNetTrainer__nnUNetPlans__3d_tiny"
    with open(os.path.join(trainer.output_folder_base, "dataset_fingerprint.json"), "w") as file:
        file.write("{}")
    export_model(trainer.output_folder_base, "both", str(to), device="cpu")
    export_pretrained_model(901, str(tmp_path / "model.zip"), ("3d_tiny",), folds=(0, 1))
    assert (tmp_path / "model.zip").exists()


# ---------------------------------------------------------------- what is refused


def test_a_folder_that_holds_something_is_not_touched(train, tmp_path):
    trainer = train()
    (tmp_path / "out").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "out" / "mine").write_text("mine")
    for to in ("out", "file"):
        with pytest.raises(UserError, match="is not an empty folder"):
            export_model(trainer.output_folder_base, "a", str(tmp_path / to), compare=False)
    (tmp_path / "out" / "mine").unlink()
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "leftover").write_text("of a run that was killed")
    export_model(trainer.output_folder_base, "a", str(tmp_path / "out"), compare=False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix == "") == ["fold_0"]


def test_a_model_that_predicts_something_else_is_not_written(train, tmp_path, monkeypatch):
    trainer = train()
    save = torch.save

    def save_other_weights(content, file):
        weights = {key: value + 0.01 for key, value in content["network_weights"].items()}
        save(content | {"network_weights": weights}, file)

    monkeypatch.setattr(torch, "save", save_other_weights)
    with pytest.raises(UserError, match=r"does not predict what .*checkpoint_final\.pth predicts"):
        export_model(trainer.output_folder_base, "b", str(tmp_path / "out"), compare=False)
    assert not list(tmp_path.glob("out*"))


def test_without_preprocessed_data_there_is_no_comparison(train, tmp_path, monkeypatch):
    trainer = train()
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(UserError, match=r"nnUNet_preprocessed is not set.*give --no-compare"):
        export_model(trainer.output_folder_base, "b", str(tmp_path / "out"), device="cpu")
    assert not list(tmp_path.glob("out*"))
    export_model(trainer.output_folder_base, "b", str(tmp_path / "out"), compare=False)


def test_a_validation_case_that_is_not_preprocessed(train, tiny_dataset, tmp_path):
    trainer = train()
    tiny_dataset.write_splits(SPLIT | {"val": ["case_4", "case_9"]})
    with pytest.raises(UserError, match=r'(?s)case_9: in "val", but not among.*give --no-compare'):
        export_model(trainer.output_folder_base, "a", str(tmp_path / "out"), device="cpu")


def test_the_fold_is_chosen(train, tmp_path):
    seen = {fold: train(fold=fold) for fold in (0, 1)}
    folder = seen[0].output_folder_base
    with pytest.raises(UserError, match="has the folds 0, 1: choose one with -f"):
        export_model(folder, "a", str(tmp_path / "out"), compare=False)
    with pytest.raises(UserError, match=r"has no trained fold 3\. It has: 0, 1"):
        export_model(folder, "a", str(tmp_path / "out"), "3", compare=False)
    checkpoint = load(os.path.join(seen[1].output_folder, "checkpoint_final.pth"))
    checkpoint["network_weights"] = {key: value + 0.5 for key, value in checkpoint["network_weights"].items()}
    torch.save(checkpoint, os.path.join(seen[1].output_folder, "checkpoint_final.pth"))
    export_model(folder, "a", str(tmp_path / "out"), "1", compare=False)
    assert same(load(tmp_path / "out/fold_0/checkpoint_final.pth")["network_weights"], checkpoint["network_weights"])


def test_the_printed_command_predicts_with_what_was_exported(train, tmp_path, capsys, monkeypatch):
    from nnunetv2.inference import predict_from_raw_data as nnunet

    out = tmp_path / "my export"
    command = ["export", train().output_folder, "--network", "both", "--to", str(out), "--no-compare"]
    assert main([*command, "-device", "cpu"]) == 0
    line = capsys.readouterr().out.splitlines()[-1].partition("Predict with: ")[2]
    monkeypatch.setattr("sys.argv", shlex.split(line.replace("INPUT", "in").replace("OUTPUT", str(tmp_path / "out"))))
    made = MagicMock()
    monkeypatch.setattr(nnunet, "nnUNetPredictor", made)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    nnunet.predict_entry_point_modelfolder()
    made.return_value.initialize_from_trained_model_folder.assert_called_once_with(
        str(out), [0, 1], "checkpoint_final.pth"
    )
    assert made.call_args.kwargs["device"] == torch.device("cpu")


def test_a_trainer_without_a_twin(train, tmp_path):
    trainer = train(nnUNetTrainerSupervised)
    with pytest.raises(UserError, match="has no network B: nnUNetTrainerSupervised trains network A alone"):
        export_model(trainer.output_folder_base, "both", str(tmp_path / "out"))
    export_model(trainer.output_folder_base, "a", str(tmp_path / "out"), device="cpu")
    with pytest.raises(UserError, match=r"has no best\.pth. It has checkpoint_final\.pth"):
        export_model(trainer.output_folder_base, "a", str(tmp_path / "new"), checkpoint="best")


def test_fold_all_has_no_validation_cases(train, tmp_path):
    trainer = train(fold="all")
    with pytest.raises(UserError, match=r"Fold all trains on every case.*give --no-compare"):
        export_model(trainer.output_folder_base, "a", str(tmp_path / "out"), device="cpu")
    export_model(trainer.output_folder_base, "a", str(tmp_path / "out"), compare=False)


def test_a_cascade_is_exported_without_the_comparison(cascade_dataset, build_trainer, tmp_path):
    trainer = build_trainer(nnUNetTrainerCPS, "cascade_tiny")
    trainer.initialize()
    Path(trainer.output_folder_base, "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
    Path(trainer.output_folder_base, "dataset.json").write_text(json.dumps(trainer.dataset_json))
    trainer.save_checkpoint(os.path.join(trainer.output_folder, "checkpoint_final.pth"))
    with pytest.raises(UserError, match=r"predictions of the stage before\..*give --no-compare"):
        export_model(trainer.output_folder_base, "b", str(tmp_path / "out"), device="cpu")
    export_model(trainer.output_folder_base, "b", str(tmp_path / "out"), compare=False)
    weights = load(tmp_path / "out/fold_0/checkpoint_final.pth")["network_weights"]
    assert same(weights, trainer.companions["B"].state_dict())
