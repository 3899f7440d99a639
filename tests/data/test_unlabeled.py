import json
import shutil

import pytest
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_dvcl.data import get_unlabeled_dataset, preprocess_unlabeled
from nnunet_dvcl.errors import UserError

WITHHELD = {"train": ["case_0", "case_1"], "val": ["case_5"], "unlabeled": ["case_3", "case_2"]}


@pytest.fixture
def get(tiny_dataset):
    """Get the unlabeled data set; ``get.log`` is what was logged."""

    def call(fold=0, configuration="3d_tiny", **options):
        managers = tiny_dataset.managers(configuration)
        return get_unlabeled_dataset(*managers, tiny_dataset.dataset_json, fold, 1, call.log.append, **options)

    call.log = []
    return call


def remove_scans(tiny):
    shutil.rmtree(tiny.images)


def test_both_sources(tiny_dataset, get, dataset_class):
    tiny_dataset.write_splits(WITHHELD)
    dataset = get()
    assert dataset.identifiers == ["case_2", "case_3", *tiny_dataset.scans]
    for case in dataset.identifiers:
        data, mask, _, _ = dataset.load_case(case)
        assert mask.shape == (1, *data.shape[1:])
    assert "3 of imagesTr_unlabeled, 2 of the split" in get.log[-1]


def test_scans_alone_for_any_fold(tiny_dataset, get):
    for fold in (0, 7, "all"):
        assert get(fold).identifiers == list(tiny_dataset.scans)


def test_withheld_cases_alone(tiny_dataset, get):
    remove_scans(tiny_dataset)
    tiny_dataset.write_splits(WITHHELD)
    assert get(configuration="2d_tiny").identifiers == ["case_2", "case_3"]
    assert not (tiny_dataset.preprocessed / "nnUNetPlans_2d_unlabeled").exists()


def test_the_folder_may_be_left_out(tiny_dataset, get):
    tiny_dataset.write_splits(WITHHELD)
    assert get(use_folder=False).identifiers == ["case_2", "case_3"]
    assert not (tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled").exists()
    with pytest.raises(
        UserError, match=r"ssl\.unlabeled_folder is false, so the scans of imagesTr_unlabeled do not count"
    ):
        get("all", use_folder=False)


@pytest.mark.parametrize("name", ["imagesTr_unlabelled", "imagesUnlabeled", "imagesTr-unlabeled", "imagesUn_labeled"])
@pytest.mark.parametrize("there", [False, True])
def test_a_folder_of_another_name_is_pointed_out(tiny_dataset, get, name, there):
    tiny_dataset.images.rename(tiny_dataset.raw / name)
    if there:
        tiny_dataset.images.mkdir()
    sentence = f"There is {tiny_dataset.raw / name}: was it meant? Rename it to imagesTr_unlabeled."
    with pytest.raises(UserError) as error:
        get()
    assert sentence in str(error.value)
    with pytest.raises(UserError) as error:
        preprocess_unlabeled("901", "3d_tiny", num_processes=1)
    assert str(error.value).endswith(sentence)
    tiny_dataset.write_splits(WITHHELD)
    get()
    assert f"WARNING: no scan of imagesTr_unlabeled. {sentence}" in get.log


def test_preprocessed_once(get):
    get()
    assert any("Preprocessing 3 of 3" in line for line in get.log)
    get.log.clear()
    get()
    assert not any("Preprocessing" in line for line in get.log)


def test_removed_scan_is_no_longer_used(tiny_dataset, get):
    get()
    (tiny_dataset.images / "scan_1_0000.nii.gz").unlink()
    assert get().identifiers == ["scan_0", "scan_2"]


def test_without_raw_data_what_was_preprocessed(tiny_dataset, get, monkeypatch):
    get()
    remove_scans(tiny_dataset)
    assert get().identifiers == list(tiny_dataset.scans)
    assert any("preprocessed before" in line for line in get.log)
    monkeypatch.delenv("nnUNet_raw")
    assert get().identifiers == list(tiny_dataset.scans)
    plans = tiny_dataset.plans
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.0, 1.0]
    tiny_dataset.write_plans(plans)
    with pytest.raises(UserError, match="other plans"):
        get()


@pytest.mark.parametrize("fold", [0, 3, "all"])
def test_no_unlabeled_case(tiny_dataset, get, fold):
    remove_scans(tiny_dataset)
    tiny_dataset.write_splits({"train": ["case_0"], "val": ["case_1"]})
    with pytest.raises(UserError) as error:
        get(fold)
    assert f"{tiny_dataset.images}/CASE_0000.nii.gz" in str(error.value)
    assert str(tiny_dataset.preprocessed / "splits_final.json") in str(error.value)
    example = next(line for line in str(error.value).splitlines() if '"unlabeled"' in line)
    assert json.loads(example.replace("[...]", "[]"))["unlabeled"] == ["case_0", "case_1"]
    assert ("a numbered fold" in str(error.value)) == (fold == "all")


def test_no_unlabeled_case_and_no_raw_folder(tiny_dataset, get, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(UserError, match=r"\$nnUNet_raw/Dataset901_Tiny/imagesTr_unlabeled/CASE_0000"):
        get()


@pytest.mark.parametrize("case", ["case_0", "case_5", "case_2", "case_4"])
def test_labeled_scan_is_refused_before_anything_is_preprocessed(tiny_dataset, get, case):
    """Whatever the case is in the fold: train, val, unlabeled, nothing."""
    tiny_dataset.write_splits(WITHHELD)
    (tiny_dataset.images / "scan_0_0000.nii.gz").rename(tiny_dataset.images / f"{case}_0000.nii.gz")
    with pytest.raises(UserError, match=case):
        get()
    assert not (tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled").exists()


def test_bad_split_is_refused_before_anything_is_preprocessed(tiny_dataset, get):
    tiny_dataset.write_splits({**WITHHELD, "unlabeled": ["case_5"]})
    with pytest.raises(UserError, match=r'case_5: is in "unlabeled" and in "val"'):
        get()
    assert not (tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled").exists()


def test_unlabeled_folder_does_not_disturb_nnunet(tiny_dataset, get, dataset_class):
    """nnU-Net still finds all that it looks for: class and cases of the labeled folder and of ours."""
    get()
    ours = str(tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled")
    assert infer_dataset_class(ours) is dataset_class
    assert set(dataset_class.get_identifiers(ours)) == set(tiny_dataset.scans)
    labeled = str(tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres")
    assert infer_dataset_class(labeled) is dataset_class
    assert set(dataset_class.get_identifiers(labeled)) == set(tiny_dataset.labeled)
