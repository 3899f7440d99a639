"""What is known of each release: organs, order, layout, numbers."""

from collections import Counter

import pytest
from miniatures import CONVERTED, LAYOUTS

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.convert import RELEASES
from nnunet_dvcl.tools.convert.layout import find_scans

# as in the release's own list of labels
VALUES = {
    "flare22": "liver right_kidney spleen pancreas aorta inferior_vena_cava right_adrenal_gland left_adrenal_gland "
    "gallbladder esophagus stomach duodenum left_kidney",
    "amos": "spleen right_kidney left_kidney gallbladder esophagus liver stomach aorta inferior_vena_cava pancreas "
    "right_adrenal_gland left_adrenal_gland duodenum bladder prostate_uterus",
    "btcv": "spleen right_kidney left_kidney gallbladder esophagus liver stomach aorta inferior_vena_cava "
    "portal_and_splenic_vein pancreas right_adrenal_gland left_adrenal_gland",
}
# Table 2: Liv Spl Sto L.kid R.kid Aor Pan IVC Duo Gal Eso RAG LAG
TABLE_2 = (
    "liver spleen stomach left_kidney right_kidney aorta pancreas inferior_vena_cava duodenum gallbladder esophagus "
    "right_adrenal_gland left_adrenal_gland"
)


def layout(source, *files):
    for file in files:
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).touch()


def whole_layout(dataset):
    """The names of all files of a release: the numbers of scans, not the numbers in their names, are real."""
    if dataset == "flare22":
        for i in range(1, 51):
            yield f"Training/FLARE22_LabeledCase50/images/FLARE22_Tr_{i:04d}_0000.nii.gz"
            yield f"Training/FLARE22_LabeledCase50/labels/FLARE22_Tr_{i:04d}.nii.gz"
            yield f"Validation/FLARETs_{i:04d}_0000.nii.gz"
        for i in range(1, 2001):
            yield f"Training/FLARE22_UnlabeledCase{'1-1000' if i <= 1000 else '1001-2000'}/Case_{i:05d}_0000.nii.gz"
    elif dataset == "amos":
        for i in range(1, 601):  # CT up to 500
            part = "Tr" if i <= 200 or i > 560 else "Va" if i <= 300 or i > 540 else "Ts"
            yield f"images{part}/amos_{i:04d}.nii.gz"
            if part != "Ts":
                yield f"labels{part}/amos_{i:04d}.nii.gz"
    elif dataset == "mmwhs":
        for modality in ("ct", "mr"):
            for i in range(1001, 1021):
                yield f"{modality}_train/{modality}_train_{i}_image.nii.gz"
                yield f"{modality}_train/{modality}_train_{i}_label.nii.gz"
            for i in range(2001, 2041):
                yield f"{modality}_test/{modality}_test_{i}_image.nii.gz"
    else:
        for i in (*range(1, 11), *range(21, 41)):
            yield f"RawData/Training/img/img{i:04d}.nii.gz"
            yield f"RawData/Training/label/label{i:04d}.nii.gz"
        for i in range(61, 81):
            yield f"RawData/Testing/img/img{i:04d}.nii.gz"


@pytest.mark.parametrize("dataset", VALUES)
def test_values_are_those_of_the_release(dataset):
    names = VALUES[dataset].split()
    assert dict(RELEASES[dataset].organs) == {name: value for value, name in enumerate(names, start=1)}


def test_flare22_has_the_order_of_table_2():
    assert list(RELEASES["flare22"].labels) == ["background", *TABLE_2.split()]


@pytest.mark.parametrize("dataset", ["amos", "btcv"])
def test_labels_without_a_table_of_the_paper_are_those_of_the_release(dataset):
    assert all(value == label for value, label in RELEASES[dataset].label_of_value.items())


def test_mmwhs_has_the_values_and_the_order_of_the_challenge():
    release = RELEASES["mmwhs"]
    assert list(release.organs.values()) == [500, 600, 420, 550, 205, 820, 850]
    assert release.label_of_value == {0: 0, 500: 1, 600: 2, 420: 3, 550: 4, 205: 5, 820: 6, 850: 7, 421: 3}


@pytest.mark.parametrize("dataset", RELEASES)
def test_labels_are_consecutive(dataset):
    assert list(RELEASES[dataset].labels.values()) == list(range(len(RELEASES[dataset].organs) + 1))


@pytest.mark.parametrize(
    ("dataset", "numbers"),
    [
        ("flare22", {("imagesTr", True): 50, ("imagesTr_unlabeled", False): 2000, ("imagesTs", False): 50}),
        ("amos", {("imagesTr", True): 300, ("imagesTs", False): 200}),
        ("mmwhs", {("imagesTr", True): 20, ("imagesTs", False): 40}),
        ("btcv", {("imagesTr", True): 30, ("imagesTs", False): 20}),
    ],
)
def test_a_whole_release_is_found(dataset, numbers, tmp_path):
    layout(tmp_path, *whole_layout(dataset))
    scans = find_scans(RELEASES[dataset], str(tmp_path))
    assert Counter((scan.folder, scan.label is not None) for scan in scans) == numbers


@pytest.mark.parametrize("dataset", RELEASES)
def test_scans_of_the_miniature(dataset, tmp_path):
    layout(tmp_path, *(file for pair in LAYOUTS[dataset] for file in pair if file))
    scans = find_scans(RELEASES[dataset], str(tmp_path), any_count=True)
    found = {}
    for scan in scans:
        found.setdefault(scan.folder, set()).add(scan.case)
        pair = (scan.image, scan.label)
        assert pair in [(str(tmp_path / i), str(tmp_path / s) if s else None) for i, s in LAYOUTS[dataset]]
        assert (scan.label is not None) == (scan.folder == "imagesTr")
    assert found == CONVERTED[dataset]


@pytest.mark.parametrize("folder", ["Tuning/images", "Validation", "FLARE22_val50/deep/er"])
def test_the_validation_folder_of_flare22_has_several_names(folder, tmp_path):
    layout(tmp_path, f"{folder}/FLARETs_0001_0000.nii.gz", "Training/FLARE22_Tr_0001_0000.nii.gz")
    layout(tmp_path, "Training/FLARE22_Tr_0001.nii.gz", "Testing/FLARETs_0002_0000.nii.gz")
    scans = find_scans(RELEASES["flare22"], str(tmp_path), any_count=True)
    assert [scan.case for scan in scans] == ["FLARE22_Tr_0001", "FLARETs_0001"]


@pytest.mark.parametrize("missing", ["Training/img/img0001", "Training/label/label0001"])
def test_an_image_or_a_segmentation_alone_is_named(missing, tmp_path):
    files = [file for file in whole_layout("btcv") if missing not in file]
    layout(tmp_path, *files)
    other = {"Training/img/img0001": "label0001.nii.gz: there is no image"}
    expected = other.get(missing, "img0001.nii.gz: there is no segmentation")
    with pytest.raises(UserError, match=expected):
        find_scans(RELEASES["btcv"], str(tmp_path), any_count=True)


def test_a_scan_that_is_there_twice_is_named(tmp_path):
    layout(tmp_path, *whole_layout("btcv"), "again/Testing/img/img0061.nii.gz")
    with pytest.raises(UserError, match=r"Testing/img/img0061.nii.gz and again/Testing/img/img0061.nii.gz") as error:
        find_scans(RELEASES["btcv"], str(tmp_path))
    assert "img0062" not in str(error.value)


def test_an_incomplete_part_is_told_with_its_numbers(tmp_path):
    layout(tmp_path, *(file for file in whole_layout("btcv") if "0040" not in file and "0061" not in file))
    with pytest.raises(UserError, match="--any-count") as error:
        find_scans(RELEASES["btcv"], str(tmp_path))
    assert "training scans: 29 found, the release has 30" in str(error.value)
    assert "test scans: 19 found, the release has 20" in str(error.value)
    assert len(find_scans(RELEASES["btcv"], str(tmp_path), any_count=True)) == 48


def test_more_scans_than_are_known_are_told(tmp_path):
    layout(tmp_path, *whole_layout("btcv"), "RawData/Testing/img/img0081.nii.gz")
    with pytest.raises(UserError, match="test scans: 21 found, the release has 20"):
        find_scans(RELEASES["btcv"], str(tmp_path))


def test_a_part_that_is_a_download_of_its_own_may_be_missing(tmp_path):
    layout(tmp_path, *(file for file in whole_layout("btcv") if "Testing" not in file))
    assert {scan.folder for scan in find_scans(RELEASES["btcv"], str(tmp_path))} == {"imagesTr"}


@pytest.mark.parametrize("any_count", [False, True])
def test_a_folder_without_the_release_is_an_error(any_count, tmp_path):
    layout(tmp_path, "RawData.zip")
    with pytest.raises(UserError, match="Archives must be unpacked"):
        find_scans(RELEASES["btcv"], str(tmp_path), any_count)
    with pytest.raises(UserError, match="is no folder"):
        find_scans(RELEASES["btcv"], str(tmp_path / "nowhere"), any_count)


def test_without_unlabeled_scans_flare22_is_incomplete(tmp_path):
    layout(tmp_path, *(file for file in whole_layout("flare22") if "Case_" not in file))
    with pytest.raises(UserError, match="unlabeled training scans: 0 found, the release has 2000"):
        find_scans(RELEASES["flare22"], str(tmp_path))


def test_links_to_folders_are_followed(tmp_path):
    layout(tmp_path / "disk", *whole_layout("btcv"))
    (tmp_path / "source").mkdir()
    (tmp_path / "source/data").symlink_to(tmp_path / "disk")
    assert len(find_scans(RELEASES["btcv"], str(tmp_path / "source"))) == 50
