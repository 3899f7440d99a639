"""A cascade from its first stage to a prediction: what each stage leaves for the next, and what it needs."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.inference.export_prediction import resample_and_save
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from thread_pools import threads_for_processes

from nnunet_dvcl.diagnostics.validation_voxels import draw_validation_patches
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.networks import unwrap
from nnunet_dvcl.tools.plots.features import plot_features
from nnunet_dvcl.trainers import (
    nnUNetTrainerCPS,
    nnUNetTrainerCPS_SameView,
    nnUNetTrainerDVCL,
    nnUNetTrainerSSL,
    nnUNetTrainerSupervised,
)
from nnunet_dvcl.trainers.base import unlabeled_stream

LABELED, WITHHELD, SCANS = (
    ["case_0", "case_1", "case_2", "case_5"],
    ["case_3", "case_4"],
    ["scan_0", "scan_1", "scan_2"],
)
FOLD_0 = {"train": LABELED[:3], "val": LABELED[3:], "unlabeled": WITHHELD}
FOLD_1 = {"train": ["case_3", "case_5"], "val": LABELED[:3]}


@pytest.fixture
def tiny(cascade_dataset, monkeypatch):
    cascade_dataset.write_splits(FOLD_0, FOLD_1)
    monkeypatch.setattr(nnUNetTrainerSSL, "_num_processes", 1)
    return cascade_dataset


def model(tiny, configuration="3d_lowres_tiny", trainer=nnUNetTrainerDVCL) -> Path:
    return tiny.results / tiny.name / f"{trainer.__name__}__nnUNetPlans__{configuration}"


def of_labeled(tiny, trainer=nnUNetTrainerDVCL) -> Path:
    return model(tiny, trainer=trainer) / "predicted_next_stage/cascade_tiny"


def of_unlabeled(tiny, fold=0, trainer=nnUNetTrainerDVCL) -> Path:
    return model(tiny, trainer=trainer) / f"fold_{fold}/predicted_next_stage/cascade_tiny"


def cases(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("*.b2nd"))


def segmentations(tiny, folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    """What the cascade reads from a folder, in the shape of its images."""
    read = {}
    for name in names:
        source = "nnUNetPlans_3d_fullres" + ("_unlabeled" if name in SCANS else "")
        dataset = nnUNetDatasetBlosc2(str(tiny.preprocessed / source), [name], str(folder))
        data, _, segmentation, _ = dataset.load_case(name)
        assert segmentation.shape == data.shape[1:]
        read[name] = segmentation[:]
    return read


@pytest.fixture
def predicted(tiny):
    """``predicted(trainer)``: both folders, as a finished first stage leaves them; label 1: the image is bright."""

    def write(trainer=nnUNetTrainerDVCL):
        for folder, names in ((of_labeled(tiny, trainer), LABELED), (of_unlabeled(tiny, 0, trainer), WITHHELD + SCANS)):
            folder.mkdir(parents=True)
            for name in names:
                source = "nnUNetPlans_3d_fullres" + ("_unlabeled" if name in SCANS else "")
                image = nnUNetDatasetBlosc2(str(tiny.preprocessed / source), [name]).load_case(name)[0][0]
                nnUNetDatasetBlosc2.save_seg((image > 0).astype(np.uint8), str(folder / name))

    return write


# ---------------------------------------------------------------- the whole way


def test_from_the_first_stage_to_a_prediction(build_trainer, tiny, tmp_path):
    for fold in (0, 1):
        lowres = build_trainer(nnUNetTrainerDVCL, "3d_lowres_tiny", fold, num_epochs=1)
        lowres.run_training()
        with threads_for_processes():
            lowres.perform_actual_validation()
    assert unwrap(lowres.network).decoder.deep_supervision
    assert cases(of_labeled(tiny)) == LABELED
    assert cases(of_unlabeled(tiny, 0)) == WITHHELD + SCANS
    assert cases(of_unlabeled(tiny, 1)) == SCANS
    segmentations(tiny, of_labeled(tiny), LABELED)
    segmentations(tiny, of_unlabeled(tiny), WITHHELD + SCANS)

    # stopped after its first of two epochs, and taken up again
    first = build_trainer(nnUNetTrainerDVCL, "cascade_tiny", 0)
    first.on_train_start()
    first.on_train_epoch_start()
    outputs = [first.train_step(next(first.dataloader_train)) for _ in range(2)]
    assert all(math.isfinite(output[term]) for output in outputs for term in (*first.loss_terms, "total"))
    checkpoint = f"{first.output_folder}/checkpoint_latest.pth"
    first.save_checkpoint(checkpoint)
    cascade = build_trainer(nnUNetTrainerDVCL, "cascade_tiny", 0, continue_training=True)
    cascade.load_checkpoint(checkpoint)
    assert cascade.current_epoch == 1
    cascade.run_training()
    with threads_for_processes():
        cascade.perform_actual_validation()
    summary = json.loads((model(tiny, "cascade_tiny") / "fold_0/validation/summary.json").read_text())
    assert [Path(case["prediction_file"]).name for case in summary["metric_per_case"]] == ["case_5.nii.gz"]
    assert not (model(tiny, "cascade_tiny") / "fold_0/predicted_next_stage").exists()

    for configuration, before in (("3d_lowres_tiny", None), ("cascade_tiny", str(tmp_path / "3d_lowres_tiny"))):
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model(tiny, configuration)), (0,))
        output = tmp_path / configuration
        output.mkdir()
        predictor.predict_from_files_sequential(str(tiny.images), str(output), folder_with_segs_from_prev_stage=before)
        assert {file.name for file in output.glob("*.nii.gz")} == {f"{scan}.nii.gz" for scan in SCANS}
    image = sitk.ReadImage(str(tiny.images / "scan_0_0000.nii.gz"))
    assert sitk.ReadImage(str(tmp_path / "cascade_tiny/scan_0.nii.gz")).GetSize() == image.GetSize()


def test_the_prediction_is_network_as_own(start, tiny, tmp_path):
    """As nnU-Net makes it of a validation case, by the network of the fold in which the case is unlabeled."""
    trainer = start(nnUNetTrainerDVCL, "3d_lowres_tiny", 0)
    with threads_for_processes():
        trainer.perform_actual_validation()
    plans_manager, manager = tiny.managers("3d_lowres_tiny")
    trainer.save_checkpoint(str(model(tiny) / "fold_0/checkpoint_final.pth"))
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model(tiny)), (0,))
    written = segmentations(tiny, of_unlabeled(tiny), ["case_3", "scan_1"])
    for name, folder in (("case_3", "nnUNetPlans_3d_lowres_tiny"), ("scan_1", "nnUNetPlans_3d_lowres_tiny_unlabeled")):
        data, _, _, properties = nnUNetDatasetBlosc2(str(tiny.preprocessed / folder), [name]).load_case(name)
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(data[:]))
        shape = written[name].shape
        assert shape != data.shape[1:]
        own = str(tmp_path / name)
        resample_and_save(logits, shape, own, plans_manager, manager, properties, tiny.dataset_json, 1)
        expected = segmentations(tiny, tmp_path, [name])[name]
        assert len(np.unique(expected)) > 1, "an empty prediction would show nothing"
        np.testing.assert_array_equal(written[name], expected)


def test_a_stage_without_a_next_one_predicts_nothing(start, tiny):
    plans = tiny.plans
    plans["configurations"]["3d_lowres_tiny"]["next_stage"] = None
    tiny.write_plans(plans)
    trainer = start(nnUNetTrainerCPS, "3d_lowres_tiny", 0)
    with threads_for_processes():
        trainer.perform_actual_validation()
    assert not list(tiny.results.rglob("predicted_next_stage"))


def test_no_rank_waits_for_the_metrics_and_a_problem_costs_no_validation(build_trainer, tiny, monkeypatch):
    """nnU-Net's validation ends with metrics that rank 0 computes alone: what has barriers comes before."""
    trainer, done, problem = build_trainer(nnUNetTrainerCPS, "3d_lowres_tiny", 0), [], UserError("not preprocessed")
    trainer.initialize()
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda *_: done.append("validated"))
    monkeypatch.setattr(unlabeled_stream, "predict_unlabeled", lambda *_: done.append("predicted"))
    trainer.perform_actual_validation()
    assert done == ["predicted", "validated"]

    def predict(*_):
        raise problem

    monkeypatch.setattr(unlabeled_stream, "predict_unlabeled", predict)
    with pytest.raises(UserError) as error:
        trainer.perform_actual_validation()
    assert error.value is problem
    assert done == ["predicted", "validated", "validated"]
    assert unwrap(trainer.network).decoder.deep_supervision


# ---------------------------------------------------------------- what the networks see


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerSupervised, nnUNetTrainerCPS, nnUNetTrainerDVCL])
def test_every_network_takes_the_labels_of_the_previous_stage(start, predicted, tiny, trainer_class):
    predicted(trainer_class)
    trainer = start(trainer_class, "cascade_tiny", 0)
    assert trainer.folder_with_segs_from_previous_stage == trainer.previous_stage().labeled
    batch = next(trainer.dataloader_train)
    assert batch["data"].shape == (2, 1 + 2, 16, 16, 16)
    assert math.isfinite(float(trainer.train_step(batch)["loss"]))
    for network in (trainer.network, *getattr(trainer, "students", dict)().values()):
        assert next(unwrap(network).parameters()).shape[1] == 1 + 2


@pytest.fixture
def unlabeled_batches(monkeypatch):
    """``unlabeled_batches(trainer, number)`` without what draws intensities and without rotation and scaling."""

    def batches(trainer, number):
        loader = trainer.dataloader_unlabeled.data_loader
        kept = [t for t in loader.transforms.transforms if type(t).__name__ != "RandomTransform"]
        for spatial in (t for t in kept if isinstance(t, SpatialTransform)):
            monkeypatch.setattr(spatial, "p_rotation", 0)
            monkeypatch.setattr(spatial, "p_scaling", 0)
        loader.transforms = ComposeTransforms(kept)
        return [next(trainer.dataloader_unlabeled) for _ in range(number)]

    return batches


def test_an_unlabeled_patch_comes_with_its_own_previous_stage(start, predicted, unlabeled_batches):
    """`predicted` has label 1 where the image is bright: geometry, mirroring and case can be read off both."""
    predicted(nnUNetTrainerCPS_SameView)
    trainer = start(nnUNetTrainerCPS_SameView, "cascade_tiny", 0)
    seen, padded = set(), 0
    for batch in unlabeled_batches(trainer, 12):
        image, first, second = batch["data"].unbind(1)
        inside = batch["target"][:, 0] >= 0
        assert batch["target"].shape[1] == 1
        assert torch.equal(first[inside], (image[inside] > 0).float())
        assert not second.any()
        padding = (batch["target"][:, 0] == -1) & (image == 0)
        assert not first[padding].any()
        padded += int(padding.sum())
        seen.update(batch["keys"])
    assert seen == {*WITHHELD, *SCANS}
    assert padded


def test_the_transforms_of_a_cascade_apply_to_unlabeled_patches_too(start, predicted):
    predicted(nnUNetTrainerCPS)
    trainer = start(nnUNetTrainerCPS, "cascade_tiny", 0)
    names = [
        [type(getattr(t, "transform", t)).__name__ for t in loader.data_loader.transforms.transforms]
        for loader in (trainer.dataloader_train, trainer.dataloader_unlabeled)
    ]
    labeled, unlabeled = ([name for name in column if "Downsample" not in name] for column in names)
    of_padding = {"_KeepValid", "RemoveLabelTransform", "_AddValid"}
    assert [name for name in labeled if name not in of_padding] == unlabeled


def test_intensities_of_their_own_leave_the_labels_alone(start, predicted):
    predicted(nnUNetTrainerCPS_SameView)
    trainer = start(nnUNetTrainerCPS_SameView, "cascade_tiny", 0, independent_intensities=True)
    differ = 0
    for _ in range(6):
        step = trainer._begin_step(next(trainer.dataloader_train), next(trainer.dataloader_unlabeled))
        a_and_b = trainer.views(step).values()
        for a, b in (tuple(view[:2] for view in a_and_b), tuple(view[2:] for view in a_and_b)):
            assert a.shape == b.shape == (2, 3, 16, 16, 16)
            assert torch.equal(a[:, 1:], b[:, 1:])
            assert set(a[:, 1:].unique().tolist()) <= {0, 1}
            differ += not torch.equal(a[:, 0], b[:, 0])
    assert differ >= 8
    assert math.isfinite(trainer.train_step(next(trainer.dataloader_train))["total"])


def test_validation_voxels_are_seen_with_their_previous_stage(start, predicted):
    predicted()
    trainer = start(nnUNetTrainerDVCL, "cascade_tiny", 0)
    _, validation = nnUNetTrainer.get_tr_and_val_datasets(trainer)
    images, labels = draw_validation_patches(validation, 4, [16, 16, 16], trainer.label_manager)
    assert images.shape == (4, 3, 16, 16, 16)
    inside = labels >= 0
    assert torch.equal(images[:, 1][inside], (images[:, 0][inside] > 0).float())
    trainer.train_step(next(trainer.dataloader_train))
    assert 0 <= trainer.epoch_statistics()["val_neighbors_same"] <= 1


def test_plot_features_of_a_cascade(start, predicted, tiny, tmp_path):
    predicted()
    trainer = start(nnUNetTrainerDVCL, "cascade_tiny", 0)
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    options = {"checkpoints": ["checkpoint_final.pth"], "num_voxels": 100, "device": "cpu"}
    plot_features("901", "cascade_tiny", 0, ["nnUNetTrainerDVCL"], str(tmp_path), **options)
    assert (tmp_path / "features.png").stat().st_size > 0
    with pytest.raises(UserError, match=r"(?s)1 of 1 labeled cases have no prediction.*case_4.*No fold"):
        plot_features("901", "cascade_tiny", 0, ["nnUNetTrainerDVCL"], str(tmp_path), cases=["case_4"], **options)


# ---------------------------------------------------------------- what is missing


def refusal(trainer) -> str:
    with pytest.raises(UserError) as error:
        trainer.on_train_start()
    assert "Epoch 0" not in Path(trainer.log_file).read_text()
    return str(error.value)


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerSupervised, nnUNetTrainerDVCL])
def test_without_a_previous_stage(build_trainer, tiny, trainer_class):
    message = refusal(build_trainer(trainer_class, "cascade_tiny", 0))
    assert f"4 of 4 labeled cases have no prediction of 3d_lowres_tiny in {of_labeled(tiny, trainer_class)}" in message
    assert "  - case_0\n" in message
    for fold in (0, 1):
        assert f"nnUNetv2_train {tiny.name} 3d_lowres_tiny {fold} -tr {trainer_class.__name__}" in message


def test_a_labeled_case_that_no_fold_validates(build_trainer, predicted, tiny):
    predicted()
    (of_labeled(tiny) / "case_1.b2nd").unlink()
    tiny.write_splits(FOLD_0)
    message = refusal(build_trainer(nnUNetTrainerDVCL, "cascade_tiny", 0))
    assert "1 of 4 labeled cases" in message
    assert "nnUNetv2_train" not in message
    never = message[message.index("No fold of") :]
    assert str(tiny.preprocessed / "splits_final.json") in never
    assert "case_1" in never
    assert "case_0" not in never


def test_a_missing_validation_case_needs_its_fold_alone(build_trainer, predicted, tiny):
    predicted()
    (of_labeled(tiny) / "case_5.b2nd").unlink()
    message = refusal(build_trainer(nnUNetTrainerDVCL, "cascade_tiny", 0))
    assert "3d_lowres_tiny 0 -tr" in message
    assert "3d_lowres_tiny 1 -tr" not in message


def test_fold_all_needs_fold_all(build_trainer, tiny):
    message = refusal(build_trainer(nnUNetTrainerDVCL, "cascade_tiny", "all"))
    assert "6 of 6 labeled cases" in message
    assert f"nnUNetv2_train {tiny.name} 3d_lowres_tiny all -tr nnUNetTrainerDVCL" in message


@pytest.mark.parametrize("missing", ["case_3", "scan_1"])
def test_a_missing_unlabeled_case(build_trainer, predicted, tiny, missing):
    """That another fold has predicted it, or nnU-Net in its own folder, is of no use."""
    predicted()
    shutil.copytree(of_unlabeled(tiny), of_unlabeled(tiny, 1))
    shutil.copy(of_unlabeled(tiny) / f"{missing}.b2nd", of_labeled(tiny))
    (of_unlabeled(tiny) / f"{missing}.b2nd").unlink()
    message = refusal(build_trainer(nnUNetTrainerDVCL, "cascade_tiny", 0))
    assert (
        f"1 of 5 unlabeled cases have no prediction of 3d_lowres_tiny that fits them in {of_unlabeled(tiny)}" in message
    )
    assert f"  - {missing}\n" in message
    assert f"nnUNetv2_train {tiny.name} 3d_lowres_tiny 0 -tr nnUNetTrainerDVCL -device cpu\n" in message
    command = f"nnunet_dvcl predict-next-stage -d {tiny.name} -c 3d_lowres_tiny -f 0 -tr nnUNetTrainerDVCL"
    assert message.endswith(command)


def test_a_prediction_of_another_shape(build_trainer, predicted, tiny):
    predicted()
    nnUNetDatasetBlosc2.save_seg(np.zeros((4, 5, 6), np.uint8), str(of_unlabeled(tiny) / "scan_2"))
    message = refusal(build_trainer(nnUNetTrainerDVCL, "cascade_tiny", 0))
    assert "1 of 5 unlabeled cases" in message
    assert "  - scan_2\n" in message


@pytest.mark.parametrize(
    ("configuration", "changes", "message"),
    [
        ("3d_lowres_tiny", {"next_stage": ["cascade_tiny", "gone"]}, "next stage of 3d_lowres_tiny is gone, which the"),
        ("cascade_tiny", {"previous_stage": "gone"}, "previous stage of cascade_tiny is gone, which the plans do not"),
        ("cascade_tiny", {"previous_stage": "3d_tiny"}, "3d_tiny, which predicts nothing for it: the next stage of"),
    ],
)
def test_stages_that_do_not_fit(build_trainer, tiny, configuration, changes, message):
    plans = tiny.plans
    plans["configurations"][configuration] |= changes
    tiny.write_plans(plans)
    assert message in refusal(build_trainer(nnUNetTrainerDVCL, configuration, 0))


def test_a_next_stage_that_is_not_preprocessed(build_trainer, tiny):
    """nnU-Net would fail in the final validation."""
    plans = tiny.plans
    plans["configurations"]["cascade_tiny"]["data_identifier"] = "nothing_yet"
    tiny.write_plans(plans)
    assert "nothing_yet does not exist. Preprocess" in refusal(build_trainer(nnUNetTrainerDVCL, "3d_lowres_tiny", 0))
