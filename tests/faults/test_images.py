"""Odd images and labels, few cases: an error that names the file, or a training that runs."""

import json
import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_dvcl.data import preprocess_unlabeled
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.trainers import nnUNetTrainerDVCL, nnUNetTrainerSupervised


def scan(shape=(20, 28, 24), dtype=np.float32, spacing=(1, 1, 1), direction=None, constant=None) -> sitk.Image:
    values = np.random.default_rng(0).normal(100, 30, shape)
    image = sitk.GetImageFromArray((values if constant is None else np.full(shape, constant)).astype(dtype))
    image.SetSpacing(spacing)
    if direction is not None:
        image.SetDirection(direction)
    return image


FLIPPED, ROTATED = (-1, 0, 0, 0, 1, 0, 0, 0, -1), (0, 1, 0, 1, 0, 0, 0, 0, 1)
WELL = {
    "constant": {"constant": 7},
    "smaller than the patch": {"shape": (5, 6, 4)},
    "one voxel": {"shape": (1, 1, 1)},
    "one slice": {"shape": (1, 28, 24)},
    "other direction": {"direction": FLIPPED},
    "other axes": {"direction": ROTATED},
    "other spacing": {"spacing": (0.5, 2, 3)},
    "large numbers": {"constant": 1e30},
    **{dtype: {"dtype": dtype} for dtype in ("uint8", "int16", "float64")},
}


def test_training_runs_on_odd_scans(tiny_dataset, request):
    for file in tiny_dataset.images.iterdir():
        file.unlink()
    images = {kind.replace(" ", "_"): scan(**options) for kind, options in WELL.items()}
    for name, image in images.items():
        sitk.WriteImage(image, str(tiny_dataset.images / f"{name}_0000.nii.gz"))
    trainer = request.getfixturevalue("start")(nnUNetTrainerDVCL)
    assert trainer.dataloader_unlabeled.data_loader.indices == sorted(images)
    for name in images:
        trainer.dataloader_unlabeled.data_loader.indices = [name]
        output = trainer.train_step(next(trainer.dataloader_train))
        assert output["skipped_steps"] == 0, name
        assert math.isfinite(output["total"]), name

    folder = str(tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled")
    for name, image in images.items():
        data, mask, _, _ = nnUNetDatasetBlosc2(folder).load_case(name)
        # z, y, x in the plan's 1 mm
        assert data.shape[1:] == ((60, 56, 12) if name == "other_spacing" else image.GetSize()[::-1]), name
        assert data.dtype == np.float32
        assert np.isfinite(data[:]).all(), name
        assert (mask[:] == 0).all(), name


@pytest.mark.parametrize("components", [2, 3])
def test_colors_where_one_channel_belongs(tiny_dataset, components):
    image = sitk.GetImageFromArray(np.ones((20, 28, 24, components), np.float32), isVector=True)
    sitk.WriteImage(image, str(tiny_dataset.images / "colors_0000.nii.gz"))
    with pytest.raises(UserError, match=r"(?s)1 unlabeled scan.*colors_0000\.nii\.gz: "):
        preprocess_unlabeled("901", "3d_tiny", num_processes=1)


# ---------------------------------------------------------------- labels


@pytest.fixture
def relabel(tiny_dataset):
    """``relabel(case, old, new)`` in the preprocessed segmentation."""
    folder = tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres"

    def change(case: str, old: int, new: int) -> None:
        data, labels, _, properties = nnUNetDatasetBlosc2(str(folder)).load_case(case)
        data, labels = data[:], labels[:]
        labels[labels == old] = new
        for file in folder.glob(f"{case}[._]*"):
            file.unlink()
        nnUNetDatasetBlosc2.save_case(data, labels, properties, str(folder / case), data.shape, data.shape)

    return change


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerSupervised, nnUNetTrainerDVCL])
def test_a_label_that_dataset_json_does_not_name(start, tiny_dataset, relabel, trainer_class):
    tiny_dataset.write_splits({"train": ["case_0"], "val": ["case_1"]})
    relabel("case_0", 2, 7)
    relabel("case_1", 2, 3)
    trainer = start(trainer_class, fold=0)
    training = next(batch for batch in trainer.dataloader_train if batch["target"][0].max() == 7)
    with pytest.raises(UserError, match=r"case_0 has the label 7, but the labels of dataset\.json end at 2"):
        trainer.train_step(training)
    validation = next(batch for batch in trainer.dataloader_val if batch["target"][0].max() == 3)
    with pytest.raises(UserError, match="case_1 has the label 3"):
        trainer.validation_step(validation)


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerSupervised, nnUNetTrainerDVCL])
def test_a_negative_label_is_named(start, tiny_dataset, relabel, trainer_class):
    """nnU-Net's -1 is what its own preprocessing writes outside of the image."""
    tiny_dataset.write_splits({"train": ["case_0"], "val": ["case_1"]})
    relabel("case_0", 2, -2)
    trainer = start(trainer_class, fold=0)
    training = next(batch for batch in trainer.dataloader_train if batch["target"][0].min() == -2)
    with pytest.raises(UserError, match=r"case_0 has the label -2, but the labels of dataset\.json begin at 0"):
        trainer.train_step(training)


def test_labels_with_a_gap_are_refused_before_any_work(build_trainer, tiny_dataset):
    content = tiny_dataset.dataset_json
    content["labels"] = {"background": 0, "large": 1, "small": 3}
    trainer = build_trainer(nnUNetTrainerSupervised)
    trainer.label_manager = trainer.plans_manager.get_label_manager(content)
    with pytest.raises(UserError, match=r"labels of dataset\.json are 0, 1, 3, expected 0 to 2 without a gap"):
        trainer.initialize()
    assert trainer.network is None


@pytest.mark.parametrize("label_mode", ["ignore", "regions", "regions + ignore"])
def test_the_ignore_label_and_regions_are_no_such_labels(start, label_mode):
    trainer = start(nnUNetTrainerDVCL)
    for _ in range(5):
        trainer.check_labels(next(trainer.dataloader_train))


def test_a_class_that_no_labeled_case_has(start, tiny_dataset):
    dataset_json = tiny_dataset.dataset_json
    dataset_json["labels"]["nowhere"] = 3
    for folder in (tiny_dataset.raw, tiny_dataset.preprocessed):
        (folder / "dataset.json").write_text(json.dumps(dataset_json))
    trainer = start(nnUNetTrainerDVCL)
    outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(3)]
    assert all(math.isfinite(output["total"]) for output in outputs)
    trainer.on_train_epoch_end(outputs)
    with torch.no_grad():
        trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val))])
    assert len(trainer.logger.get_checkpoint()["dice_per_class_or_region"][0]) == 3
    labeled = trainer.labels.of_target(next(trainer.dataloader_train)["target"][0])
    assert 3 not in labeled


# ---------------------------------------------------------------- hidden files


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerSupervised, nnUNetTrainerDVCL])
def test_what_a_mac_leaves_among_labeled_cases_is_named(build_trainer, tiny_dataset, trainer_class):
    """nnU-Net would draw it, and put it into its splits."""
    folder = tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres"
    for suffix in (".b2nd", "_seg.b2nd", ".pkl"):
        (folder / f"._case_0{suffix}").write_bytes(b"Mac OS X")
    with pytest.raises(
        UserError, match=rf"(?s){folder} holds hidden files that nnU-Net takes for cases.*  - \._case_0$"
    ):
        build_trainer(trainer_class, fold=0).on_train_start()
    assert not (tiny_dataset.preprocessed / "splits_final.json").exists()


# ---------------------------------------------------------------- few cases


def test_one_labeled_and_one_unlabeled_case(start, tiny_dataset):
    """Fewer of both than the batches have patches."""
    for name in ("scan_1", "scan_2"):
        (tiny_dataset.images / f"{name}_0000.nii.gz").unlink()
    tiny_dataset.write_splits({"train": ["case_0"], "val": ["case_5"]})
    trainer = start(nnUNetTrainerDVCL, fold=0, unlabeled_batch_size=5)
    batch, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)
    assert list(batch["keys"]) == ["case_0"] * 2
    assert list(unlabeled["keys"]) == ["scan_0"] * 5
    assert unlabeled["data"].shape == (5, 1, 16, 16, 16)
    output = trainer.train_step(batch)
    assert math.isfinite(output["total"])
    assert output["skipped_steps"] == 0


def test_one_withheld_case(start, tiny_dataset):
    for file in tiny_dataset.images.iterdir():
        file.unlink()
    tiny_dataset.write_splits({"train": ["case_0"], "val": ["case_5"], "unlabeled": ["case_1"]})
    trainer = start(nnUNetTrainerDVCL, fold=0)
    assert list(next(trainer.dataloader_unlabeled)["keys"]) == ["case_1"] * 2
    assert math.isfinite(trainer.train_step(next(trainer.dataloader_train))["total"])
