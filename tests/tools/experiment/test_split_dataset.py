"""``nnunet_dvcl split`` on a data set: what it reads, what it writes, what it refuses."""

import json
import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_dvcl.cli import main
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.split.split_dataset import read_case_classes, split_dataset


def read(file):
    return json.loads(file.read_text())


def remove_label(tiny, case, label, by=0):
    file = str(tiny.preprocessed / "gt_segmentations" / f"{case}.nii.gz")
    labels = sitk.GetArrayFromImage(sitk.ReadImage(file))
    labels[labels == label] = by
    sitk.WriteImage(sitk.GetImageFromArray(labels), file)


def test_the_command_writes_what_nnunet_and_our_trainers_read(tiny_dataset, build_trainer, capsys):
    from nnunet_dvcl.data.splits import withheld_cases
    from nnunet_dvcl.trainers import nnUNetTrainerCPS

    argv = ["split", "-d", "901", "--count", "2", "--test", "0.2", "--folds", "3", "--unlabeled", "1"]
    assert main(argv) == 0
    folds = read(tiny_dataset.preprocessed / "splits_final.json")
    test = read(tiny_dataset.preprocessed / "test_cases.json")
    assert len(test) == 1
    assert sorted(len(fold["val"]) for fold in folds) == [1, 2, 2]
    for number, fold in enumerate(folds):
        trainer = build_trainer(nnUNetTrainerCPS, fold=number)
        trainer.initialize()
        assert trainer.do_split() == (fold["train"], fold["val"])
        assert (
            withheld_cases(str(tiny_dataset.preprocessed / "splits_final.json"), number, tiny_dataset.labeled)
            == (fold["unlabeled"])
        )
        assert not {*fold["train"], *fold["val"], *fold["unlabeled"]} & set(test)
        assert (len(fold["train"]), len(fold["unlabeled"])) == (2, 1)
    printed = capsys.readouterr().out
    assert "fold 0: 2 labeled, 1 unlabeled, 2 validation cases" in printed
    assert "1 test cases, in no fold" in printed
    assert not list(tiny_dataset.preprocessed.glob("*.partial"))


def test_raw_and_preprocessed_data_give_the_same_split(tiny_dataset, tmp_path, monkeypatch):
    preprocessed = split_dataset("901", labeled=0.5, test=0.2, num_folds=2)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "elsewhere"))
    assert split_dataset("901", labeled=0.5, test=0.2, num_folds=2) == preprocessed
    assert read(tmp_path / "elsewhere" / tiny_dataset.name / "test_cases.json") == preprocessed.test


def test_float_labels_are_read_as_nnunet_trains_on_them(tiny_dataset):
    """1.0000001 is 1, and so is 1.9: nnU-Net cuts fractions off."""
    before = split_dataset("901", labeled=0.5, num_folds=2)
    for file in (tiny_dataset.preprocessed / "gt_segmentations").glob("*.nii.gz"):
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).astype(np.float32)
        labels[labels > 0] += 0.4
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(file))
    assert split_dataset("901", labeled=0.5, num_folds=2, force=True) == before


def test_the_seed_and_all_options_arrive(tiny_dataset):
    (tiny_dataset.images).rename(tiny_dataset.images.with_name("scans"))
    for i, case in enumerate(tiny_dataset.labeled):
        for file in (tiny_dataset.preprocessed / "gt_segmentations").glob(f"{case}.*"):
            file.rename(file.with_name(f"p{i // 2}_{i % 2}.nii.gz"))
    argv = ["split", "-d", "901", "--labeled", "0.5", "--folds", "3", "--group-by", "^p.", "--stratify", "--seed"]
    written = []
    for seed in ("1", "2"):
        assert main([*argv, seed, "--force"]) == 0
        written.append(read(tiny_dataset.preprocessed / "splits_final.json"))
    assert written[0] != written[1]
    for fold in written[0]:
        assert [len({case[:2] for case in fold[part]}) for part in ("train", "val", "unlabeled")] == [1, 1, 1]
    assert not (tiny_dataset.preprocessed / "test_cases.json").exists()


def test_nothing_is_overwritten_without_force(tiny_dataset, capsys):
    splits, test = (tiny_dataset.preprocessed / name for name in ("splits_final.json", "test_cases.json"))
    argv = ["split", "-d", "901", "--count", "1", "--folds", "2"]
    splits.write_text("[1]")
    assert main([*argv, "--test", "0.2"]) == 1
    assert "splits_final.json" in capsys.readouterr().err
    assert splits.read_text() == "[1]"
    assert not test.exists()

    assert main([*argv, "--test", "0.2", "--force"]) == 0
    assert (splits.parent / "splits_final.json.bak").read_text() == "[1]"
    assert test.exists()

    before = read(test)
    splits.unlink()
    assert main(argv) == 1, "a list of test cases that trains would be worse than none"
    assert "test_cases.json" in capsys.readouterr().err
    assert main([*argv, "--force"]) == 0
    assert not test.exists()
    assert read(test.parent / "test_cases.json.bak") == before


def test_nothing_is_written_when_it_cannot_be_drawn(tiny_dataset):
    for case in tiny_dataset.labeled:
        remove_label(tiny_dataset, case, 2, by=1)
    with pytest.raises(UserError, match="No case has small"):
        split_dataset("901", count=2)
    assert not (tiny_dataset.preprocessed / "splits_final.json").exists()


def test_the_labeled_case_is_one_that_has_the_rare_class(tiny_dataset):
    for case in tiny_dataset.labeled[:4]:
        remove_label(tiny_dataset, case, 2)
    for fold in split_dataset("901", count=1, num_folds=2, stratify=True).folds:
        assert fold["train"][0] in tiny_dataset.labeled[4:]
    remove_label(tiny_dataset, "case_4", 2)
    with pytest.raises(UserError, match=r"Fold \d: No training case has small"):
        split_dataset("901", count=1, num_folds=2, force=True)


@pytest.mark.parametrize("label_mode", ["regions + ignore"])
def test_a_region_occurs_where_one_of_its_labels_does(tiny_dataset):
    truth = {case: str(tiny_dataset.preprocessed / "gt_segmentations" / f"{case}.nii.gz") for case in ("case_0",)}
    assert read_case_classes(truth, tiny_dataset.dataset_json) == {"case_0": ["whole", "small"]}
    remove_label(tiny_dataset, "case_0", 2)
    assert read_case_classes(truth, tiny_dataset.dataset_json) == {"case_0": ["whole"]}
    remove_label(tiny_dataset, "case_0", 1)
    assert read_case_classes(truth, tiny_dataset.dataset_json) == {"case_0": []}


def test_a_scan_of_a_patient_that_is_evaluated(tiny_dataset):
    for name in ("case_1b", "case_9"):
        shutil.copy(tiny_dataset.images / "scan_0_0000.nii.gz", tiny_dataset.images / f"{name}_0000.nii.gz")
    with pytest.raises(UserError, match=r"imagesTr_unlabeled.*\n.*case_1b: of group case_1") as error:
        split_dataset("901", count=1, group_pattern=r"case_\d")
    assert "scan_0" not in str(error.value)
    assert "case_9" not in str(error.value), "no labeled case is of this group"
    assert not (tiny_dataset.preprocessed / "splits_final.json").exists()
    split_dataset("901", count=1)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-d", "77", "--count", "1"], "No data set 77"),
        (["-d", "Dataset077_None", "--count", "1"], "No labels of Dataset077_None are found"),
        (["-d", "901", "--count", "9"], "9 labeled cases are wanted"),
        (["-d", "901", "--count", "1", "--group-by", "x"], "finds no group in these cases"),
    ],
)
def test_errors_are_messages(tiny_dataset, argv, message, capsys):
    assert main(["split", *argv]) == 1
    assert message in capsys.readouterr().err


def test_a_label_file_that_is_broken(tiny_dataset):
    (tiny_dataset.preprocessed / "gt_segmentations" / "case_3.nii.gz").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"case_3\.nii\.gz cannot be read"):
        split_dataset("901", count=1)


def test_a_data_set_without_labels(tiny_dataset):
    shutil.rmtree(tiny_dataset.preprocessed / "gt_segmentations")
    os.mkdir(tiny_dataset.preprocessed / "gt_segmentations")
    with pytest.raises(UserError, match="has no labeled case"):
        split_dataset("901", count=1)


@pytest.mark.parametrize("option", [["--labeled", "0"], ["--labeled", "10"], ["--count", "0"], ["--test", "-1"]])
def test_values_that_cannot_be_are_refused_before_a_label_is_read(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["split", "-d", "901", *option])
    assert stop.value.code == 2


def test_a_share_or_a_count(capsys):
    with pytest.raises(SystemExit):
        main(["split", "-d", "901", "--labeled", "0.1", "--count", "3"])
    assert "not allowed with" in capsys.readouterr().err
