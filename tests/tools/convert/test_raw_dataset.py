"""``convert_dataset`` on the miniatures: what is written, and what a second run does with it."""

import json
import os
import shutil

import numpy as np
import pytest
from miniatures import CONVERTED, read, segmentation_of, write
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from nnunet_dvcl.data.raw import find_unlabeled_images
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.convert import RELEASES
from nnunet_dvcl.tools.convert import raw_dataset as dataset
from nnunet_dvcl.tools.convert.raw_dataset import convert_dataset


@pytest.fixture
def convert(make_release, raw):
    """``convert("btcv", **options)``: data set 7 from a miniature, which is made by the first call."""
    sources = {}

    def run(name, dataset_id=7, **options):
        if name not in sources:
            sources[name] = make_release(name)
        return raw / os.path.basename(convert_dataset(name, str(sources[name]), dataset_id, any_count=True, **options))

    return run


def contents(folder):
    """Every file with its bytes, time of change and target."""
    files = [file for file in folder.rglob("*") if not file.is_dir()]
    return {str(f): (f.read_bytes(), f.lstat().st_mtime_ns, f.is_symlink() and os.readlink(f)) for f in files}


@pytest.mark.parametrize("name", RELEASES)
def test_nnunet_finds_no_fault(name, convert, monkeypatch, capsys):
    folder = convert(name)
    # one process: a pool of workers takes seconds to start
    pool = type("Pool", (), {"__enter__": lambda self: self, "__exit__": lambda *_: None})
    pool.starmap = staticmethod(lambda function, arguments: [function(*a) for a in arguments])
    context = type("Context", (), {"Pool": staticmethod(lambda _: pool())})
    monkeypatch.setattr("multiprocessing.get_context", lambda *_: context)
    verify_dataset_integrity(str(folder), 1)
    assert "Warning: " not in capsys.readouterr().out


@pytest.mark.parametrize("name", RELEASES)
def test_each_scan_is_in_its_folder(name, convert):
    folder = convert(name)
    expected = {f"{sub}/{case}_0000.nii.gz" for sub, cases in CONVERTED[name].items() for case in cases}
    expected |= {f"labelsTr/{case}.nii.gz" for case in CONVERTED[name]["imagesTr"]} | {"dataset.json"}
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == expected
    description = json.loads((folder / "dataset.json").read_text())
    assert set(find_unlabeled_images(str(folder), description)) == CONVERTED[name].get("imagesTr_unlabeled", set())


@pytest.mark.parametrize("name", RELEASES)
def test_segmentations_have_the_labels_of_dataset_json(name, convert):
    folder = convert(name)
    description = json.loads((folder / "dataset.json").read_text())
    assert description["numTraining"] == len(CONVERTED[name]["imagesTr"])
    assert list(description["labels"])[1:] == list(RELEASES[name].organs)
    for case in CONVERTED[name]["imagesTr"]:
        found = read(folder / f"labelsTr/{case}.nii.gz")
        for organ, value in RELEASES[name].organs.items():
            assert np.array_equal(found == description["labels"][organ], segmentation_of(name) == value)
        assert found.max() == len(RELEASES[name].organs)


def test_images_are_the_files_of_the_release(convert, tmp_path):
    folder = convert("btcv")
    for case in CONVERTED["btcv"]["imagesTr"]:
        copy = folder / f"imagesTr/{case}_0000.nii.gz"
        assert not copy.is_symlink()
        assert copy.read_bytes() == (tmp_path / f"downloads/btcv/RawData/Training/img/{case}.nii.gz").read_bytes()


def test_links_instead_of_copies(convert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convert("flare22")
    shutil.rmtree(tmp_path / "raw/Dataset007_FLARE22")
    convert_dataset("flare22", "downloads/flare22", 7, any_count=True, link=True)
    folder = tmp_path / "raw/Dataset007_FLARE22"
    for sub in ("imagesTr", "imagesTr_unlabeled", "imagesTs"):
        assert all(file.is_symlink() and file.is_file() for file in (folder / sub).iterdir())
        assert all(str(tmp_path / "downloads/flare22") in os.readlink(file) for file in (folder / sub).iterdir())
    assert not any(file.is_symlink() for file in (folder / "labelsTr").iterdir())


@pytest.mark.parametrize("link", [False, True])
def test_a_second_run_changes_nothing(convert, link):
    folder = convert("flare22", link=link)
    before = contents(folder)
    convert("flare22", link=link)
    assert contents(folder) == before


def test_what_is_lost_comes_back_and_the_rest_stays(convert):
    folder = convert("btcv")
    before = contents(folder)
    (folder / "labelsTr/img0010.nii.gz").unlink()
    (folder / "imagesTr/img0040_0000.nii.gz").unlink()
    with open(folder / "imagesTs/img0061_0000.nii.gz", "rb+") as file:
        file.truncate(100)
    convert("btcv")
    after = contents(folder)
    assert {file: what[0] for file, what in after.items() if "img0010.nii" not in file} == {
        file: what[0] for file, what in before.items() if "img0010.nii" not in file
    }
    assert read(folder / "labelsTr/img0010.nii.gz").max() == 13
    changed = {os.path.basename(file) for file in after if after[file] != before[file]}
    assert changed == {"img0010.nii.gz", "img0040_0000.nii.gz", "img0061_0000.nii.gz"}


def test_a_link_whose_image_was_moved_is_mended(convert, tmp_path):
    folder = convert("btcv", link=True)
    (tmp_path / "downloads").rename(tmp_path / "elsewhere")
    convert_dataset("btcv", str(tmp_path / "elsewhere/btcv"), 7, any_count=True, link=True)
    assert all(file.is_file() for file in (folder / "imagesTr").iterdir())


@pytest.mark.parametrize("link", [False, True])
def test_what_a_killed_copy_has_left_behind_goes(convert, link):
    image = convert("btcv") / "imagesTr/img0001_0000.nii.gz"
    image.rename(f"{image}.partial")
    folder = convert("btcv", link=link)
    assert image.is_symlink() == link
    assert not list(folder.rglob("*.partial"))


def test_an_interrupted_run_is_no_data_set_and_is_resumed(convert, raw, monkeypatch):
    taken = []

    def stop(*arguments):
        if len(taken) == 2:
            raise KeyboardInterrupt
        taken.append(arguments)
        take(*arguments)

    take = dataset._take
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "_take", stop)
        with pytest.raises(KeyboardInterrupt):
            convert("btcv")
    folder = raw / "Dataset007_BTCV"
    assert not (folder / "dataset.json").exists()
    assert len(list((folder / "imagesTr").iterdir())) == 2
    before = contents(folder)
    convert("btcv")
    after = contents(folder)
    assert str(folder / "dataset.json") in after
    assert set(before) - set(after) == {str(folder / "dataset.json.unfinished")}
    assert all(after[file] == before[file] for file in before if file in after)


@pytest.mark.parametrize("function", ["gzip.open", "shutil.copyfile"])
def test_a_file_that_is_being_written_has_another_name(convert, monkeypatch, function):
    opened = []

    def fail(*arguments, **_):
        opened.append(str(arguments[-1] if function == "shutil.copyfile" else arguments[0]))
        open(opened[-1], "w").close()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(function, fail)
        with pytest.raises(KeyboardInterrupt):
            convert("btcv")
    assert opened[0].endswith(".nii.gz.partial")
    folder = convert("btcv")
    assert not list(folder.rglob("*.partial"))


def test_bad_scans_are_named_and_the_others_are_kept(convert, make_release, tmp_path):
    source = make_release("btcv")
    label = source / "RawData/Training/label/label0010.nii.gz"
    write(label, np.full((8, 9, 10), 14, np.uint8))
    (source / "RawData/Testing/img/img0061.nii.gz").write_text("no image")
    with pytest.raises(UserError, match="2 of 4 scans cannot be converted") as error:
        convert_dataset("btcv", str(source), 7, any_count=True)
    assert f"{label}: has the value 14" in str(error.value)
    assert "img0061.nii.gz: cannot be read" in str(error.value)
    folder = tmp_path / "raw/Dataset007_BTCV"
    assert sorted(os.listdir(folder / "labelsTr")) == ["img0001.nii.gz", "img0040.nii.gz"]
    assert sorted(os.listdir(folder / "imagesTr")) == ["img0001_0000.nii.gz", "img0040_0000.nii.gz"]
    assert not (folder / "dataset.json").exists()
    convert("btcv")
    assert (folder / "dataset.json").exists()


def test_geometry_is_ignored_on_demand(make_release, raw):
    source = make_release("btcv")
    write(source / "RawData/Training/label/label0010.nii.gz", segmentation_of("btcv"), np.eye(4))
    with pytest.raises(UserError, match=r"label0010\.nii\.gz: lies elsewhere"):
        convert_dataset("btcv", str(source), 7, any_count=True)
    convert_dataset("btcv", str(source), 7, any_count=True, ignore_geometry=True)


def test_the_number_of_scans_is_checked(make_release, raw):
    with pytest.raises(UserError, match="training scans: 3 found, the release has 30"):
        convert_dataset("btcv", str(make_release("btcv")), 7)
    assert not list(raw.iterdir())


def test_a_download_that_went_on_is_converted_too(convert, tmp_path):
    folder = convert("btcv")
    source = tmp_path / "downloads/btcv/RawData/Training"
    shutil.copy(source / "img/img0001.nii.gz", source / "img/img0002.nii.gz")
    shutil.copy(source / "label/label0001.nii.gz", source / "label/label0002.nii.gz")
    convert("btcv")
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 4
    assert not (folder / "dataset.json.unfinished").exists()


def test_max_unlabeled_takes_the_first(convert):
    folder = convert("flare22", max_unlabeled=2)
    assert sorted(os.listdir(folder / "imagesTr_unlabeled")) == ["Case_00001_0000.nii.gz", "Case_01000_0000.nii.gz"]
    assert len(os.listdir(folder / "imagesTr")) == 3
    convert("flare22", max_unlabeled=3)
    assert len(os.listdir(folder / "imagesTr_unlabeled")) == 3
    with pytest.raises(UserError, match=r"Case_01001_0000\.nii\.gz"):
        convert("flare22", max_unlabeled=2)


def test_scans_of_ones_own_beside_a_release_without_any_are_left_alone(convert):
    folder = convert("btcv")
    (folder / "imagesTr_unlabeled").symlink_to("imagesTs")
    convert("btcv")


@pytest.mark.parametrize("where", ["raw", "preprocessed", "results"])
def test_a_number_that_belongs_to_another_data_set_is_refused(convert, tmp_path, where):
    (tmp_path / where / "Dataset007_Heart").mkdir(parents=True)
    (tmp_path / where / "Dataset0071_Other").mkdir()
    with pytest.raises(UserError, match="The number 7 belongs to Dataset007_Heart"):
        convert("btcv")
    assert convert("btcv", dataset_id=71).name == "Dataset071_BTCV"


@pytest.mark.parametrize("description", [None, {}, {"converted_by": "me"}, "other labels"])
def test_a_folder_that_another_tool_made_is_refused(convert, raw, description):
    folder = raw / "Dataset007_BTCV"
    (folder / "imagesTr").mkdir(parents=True)
    if description == "other labels":
        description = {"converted_by": "nnunet_dvcl convert btcv", "labels": {"background": 0, "liver": 1}}
    if description is not None:
        (folder / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="Dataset007_BTCV was not made by this command"):
        convert("btcv")
    assert not (folder / "labelsTr").exists()


@pytest.mark.parametrize("stray", ["imagesTr/mine_0000.nii.gz", "labelsTr/img0002.nii.gz", "imagesTs/notes.txt"])
def test_files_that_do_not_belong_there_are_named(convert, stray):
    folder = convert("btcv")
    (folder / stray).touch()
    with pytest.raises(UserError, match=stray):
        convert("btcv")


def test_nnunet_raw_must_be_set(make_release, monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(UserError, match="nnUNet_raw is not set"):
        convert_dataset("btcv", str(make_release("btcv")), 7, any_count=True)
