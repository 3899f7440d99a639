import json

import pytest

from nnunet_dvcl.data.raw import find_unlabeled_images
from nnunet_dvcl.errors import UserError

ONE_CHANNEL = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
TWO_CHANNELS = {"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz"}


@pytest.fixture
def raw(tmp_path):
    """Make a raw data set of empty files: ``raw("a_0000.nii.gz", ..., labeled=("x_0000.nii.gz",))``."""

    def make(*names, labeled=()):
        for folder, files in (("imagesTr_unlabeled", names), ("imagesTr", labeled)):
            (tmp_path / folder).mkdir()
            for name in files:
                (tmp_path / folder / name).touch()
        return str(tmp_path)

    return make


def test_no_folder_no_scans(tmp_path):
    assert find_unlabeled_images(str(tmp_path), ONE_CHANNEL) == {}


def test_channels_in_order(raw):
    folder = raw("b_1_0001.nii.gz", "a_0001.nii.gz", "a_0000.nii.gz", "b_1_0000.nii.gz")
    found = find_unlabeled_images(folder, TWO_CHANNELS)
    assert list(found) == ["a", "b_1"]
    assert found["b_1"] == [f"{folder}/imagesTr_unlabeled/b_1_000{c}.nii.gz" for c in (0, 1)]


def test_hidden_files_are_ignored(raw):
    assert list(find_unlabeled_images(raw("a_0000.nii.gz", ".DS_Store", "._a_0000.nii.gz"), ONE_CHANNEL)) == ["a"]


def test_spacing_file_of_a_tiff_belongs_to_its_scan(raw):
    dataset_json = {**ONE_CHANNEL, "file_ending": ".tif"}
    assert list(find_unlabeled_images(raw("a_0000.tif", "a.json"), dataset_json)) == ["a"]


@pytest.mark.parametrize("name", ["b.nii.gz", "b_0000.nii", "b_0000.nrrd", "b_00.nii.gz", "_0000.nii.gz", "notes.txt"])
def test_stray_file(raw, name):
    with pytest.raises(UserError, match="imagesTr_unlabeled") as error:
        find_unlabeled_images(raw("a_0000.nii.gz", name), ONE_CHANNEL)
    assert f"{name}: expected CASE_0000.nii.gz" in str(error.value)


def test_missing_and_surplus_channels(raw):
    with pytest.raises(UserError) as error:
        find_unlabeled_images(raw("a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz", "b_0002.nii.gz"), TWO_CHANNELS)
    assert "a: channel 0000 is missing" in str(error.value)
    assert "b: b_0002.nii.gz is one channel too many" in str(error.value)


RGB = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png"}


@pytest.mark.parametrize(
    ("labeled", "listed", "scan_files", "accepted"),
    [
        (("x_0000.png",), None, 1, True),
        (("x_0000.png",), None, 3, False),
        (("x_0000.png", "x_0001.png", "x_0002.png"), None, 1, False),
        (("x_0000.png", "x_0001.png", "x_0002.png"), None, 3, True),
        (("x_0000.png", "._x_0001.png"), None, 1, True),  # what a Mac leaves behind is no channel
        ((), ["images/x.png"], 1, True),
        ((), ["images/x.png"], 3, False),
        ((), ["images/r.png", "images/g.png", "images/b.png"], 3, True),
        ((), None, 1, True),  # a machine that has preprocessed data alone
        ((), None, 3, True),
        ((), None, 2, False),
    ],
)
def test_how_many_files_a_scan_has(raw, labeled, listed, scan_files, accepted):
    """As the labeled images have; where there are none, all channels in one file or a file for each."""
    folder = raw(*(f"a_{c:04d}.png" for c in range(scan_files)), labeled=labeled)
    dataset_json = RGB | ({"dataset": {"x": {"images": listed, "label": "x.png"}}} if listed else {})
    if accepted:
        assert len(find_unlabeled_images(folder, dataset_json)["a"]) == scan_files
    else:
        with pytest.raises(UserError, match="must be laid out as imagesTr is"):
            find_unlabeled_images(folder, dataset_json)


def test_identifier_that_nnunet_takes_for_a_segmentation(raw):
    with pytest.raises(UserError, match=r"a_seg: .*another name"):
        find_unlabeled_images(raw("a_seg_0000.nii.gz"), ONE_CHANNEL)


def test_all_channels_in_one_file_as_in_images_tr(raw):
    """RGB pictures: three channels, one file."""
    dataset_json = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png"}
    folder = raw("a_0000.png", labeled=("x_0000.png",))
    assert find_unlabeled_images(folder, dataset_json) == {"a": [f"{folder}/imagesTr_unlabeled/a_0000.png"]}


def test_all_problems_at_once_ten_named(raw):
    with pytest.raises(UserError) as error:
        find_unlabeled_images(raw(*(f"note_{i:02d}.txt" for i in range(12))), ONE_CHANNEL)
    assert "note_09.txt" in str(error.value)
    assert "note_10.txt" not in str(error.value)
    assert "and 2 more" in str(error.value)


def test_old_dataset_json_with_modality(raw):
    dataset_json = json.loads('{"modality": {"0": "CT"}, "file_ending": ".nii.gz"}')
    assert list(find_unlabeled_images(raw("a_0000.nii.gz"), dataset_json)) == ["a"]
