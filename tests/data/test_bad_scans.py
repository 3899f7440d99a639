"""Scans that cannot be used are named and, where asked for, left out; strange ones are told."""

import copy
import functools
import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from small_values import SMALL

from nnunet_dvcl.cli import main
from nnunet_dvcl.data import preprocess_unlabeled
from nnunet_dvcl.data.preprocess import UnlabeledScans
from nnunet_dvcl.data.raw import check_images
from nnunet_dvcl.data.storage import complete_cases
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.trainers import nnUNetTrainerCPS


def run(configuration="3d_tiny"):
    return preprocess_unlabeled("901", configuration, num_processes=1)


def write_scan(tiny, name, array):
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tiny.images / f"{name}_0000.nii.gz"))


def test_bad_images_are_named_and_the_others_kept(tiny_dataset):
    good = np.full((8, 9, 10), 7, np.float32)
    bad = {"zeros": good * 0, "nan": good.copy(), "inf": good.copy()}
    bad["nan"][0, 0, 0] = np.nan
    bad["inf"][0, 0, 0] = np.inf
    # SimpleITK reads NaN in a NIfTI file as 0, nibabel as NaN.
    tiny_dataset.write_plans({**tiny_dataset.plans, "image_reader_writer": "NibabelIO"})
    for name, array in bad.items():
        write_scan(tiny_dataset, name, array)
    (tiny_dataset.images / "torn_0000.nii.gz").write_bytes(b"no image")
    (tiny_dataset.images / "void_0000.nii.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"5 unlabeled scan.*the other 3 are done and kept") as error:
        run()
    message = str(error.value)
    for name, reason in {
        "zeros": "empty",
        "nan": "NaN or infinite",
        "inf": "NaN or infinite",
        "torn": "cannot be read",
        "void": "cannot be read",
    }.items():
        line = next(line for line in message.splitlines() if f"/{name}_0000.nii.gz" in line)
        assert reason in line
    folder = str(tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled")
    assert complete_cases(folder, nnUNetDatasetBlosc2) == set(tiny_dataset.scans)


@pytest.fixture
def two_bad_scans(tiny_dataset):
    (tiny_dataset.images / "torn_0000.nii.gz").write_bytes(b"no image")
    (tiny_dataset.images / "lost_0000.nii.gz").symlink_to("nowhere")
    return tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled"


def test_bad_scans_are_left_out_and_listed_where_asked_for(two_bad_scans, tiny_dataset, capsys):
    with pytest.raises(UserError, match=r"2 unlabeled scan.*--skip-bad, or ssl\.skip_bad_scans=true"):
        run()
    assert main(["preprocess", "-d", "901", "-c", "3d_tiny", "-np", "1", "--skip-bad"]) == 0
    file = two_bad_scans / ".nnunet_dvcl/left_out.json"
    printed = capsys.readouterr().out
    assert f"WARNING: 2 of 5 unlabeled scans cannot be used and are left out; {file} lists them:\n" in printed
    assert "torn_0000.nii.gz: cannot be read" in printed
    listed = json.loads(file.read_text())
    assert list(listed) == ["lost", "torn"]
    assert listed["torn"]["problem"].startswith(f"{tiny_dataset.images}/torn_0000.nii.gz: cannot be read")
    assert complete_cases(str(two_bad_scans), nnUNetDatasetBlosc2) == set(tiny_dataset.scans)


def test_what_was_left_out_stays_so_until_its_file_changes(two_bad_scans, tiny_dataset, monkeypatch, capsys):
    preprocess_unlabeled("901", "3d_tiny", num_processes=1, skip_bad=True)
    with monkeypatch.context() as nothing_to_do:
        nothing_to_do.setattr(UnlabeledScans, "_preprocess", None)
        run()
    assert "2 of 5 unlabeled scans cannot be used" in capsys.readouterr().out

    (tiny_dataset.images / "torn_0000.nii.gz").write_bytes(b"still no image")
    with pytest.raises(UserError, match=r"(?s)1 unlabeled scan.*torn_0000"):
        run()
    shutil.copy(tiny_dataset.images / "scan_0_0000.nii.gz", tiny_dataset.images / "torn_0000.nii.gz")
    run()
    assert complete_cases(str(two_bad_scans), nnUNetDatasetBlosc2) == {*tiny_dataset.scans, "torn"}
    assert "1 of 5 unlabeled scans cannot be used" in capsys.readouterr().out


def test_a_training_leaves_bad_scans_out_where_its_key_says_so(two_bad_scans, tiny_dataset):
    trainer = functools.partial(
        nnUNetTrainerCPS, configuration="3d_tiny", fold="all", dataset_json=tiny_dataset.dataset_json
    )
    plans = tiny_dataset.plans | {"continue_training": False}

    def train(**ssl):
        plans["configurations"]["3d_tiny"]["ssl"] = SMALL | ssl
        made = trainer(copy.deepcopy(plans), device=torch.device("cpu"))
        made.initialize()
        made.get_dataloaders()
        return made.dataloader_unlabeled.data_loader.indices

    with pytest.raises(UserError, match="2 unlabeled scan"):
        train()
    assert train(skip_bad_scans=True) == sorted(tiny_dataset.scans)
    assert train() == sorted(tiny_dataset.scans), "as listed"


def test_a_scan_that_overflows_when_it_is_normalized_is_named(tiny_dataset):
    """Its voxels are finite, what would be stored is not."""
    plans = copy.deepcopy(tiny_dataset.plans)
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["ZScoreNormalization"]
    tiny_dataset.write_plans(plans)
    huge = np.full((8, 9, 10), 7, np.float32)
    huge[:4] = 3e38
    write_scan(tiny_dataset, "huge", huge)
    with pytest.raises(UserError, match=r"huge_0000\.nii\.gz: NaN or infinite after normalization"):
        run()
    folder = str(tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled")
    assert complete_cases(folder, nnUNetDatasetBlosc2) == set(tiny_dataset.scans)


def test_a_scan_that_is_constant_after_normalization_is_used_with_a_warning(tiny_dataset, capsys):
    write_scan(tiny_dataset, "even", np.full((8, 9, 10), 7, np.float32))
    run()
    printed = capsys.readouterr().out
    assert "WARNING: these scans are used, but are strange" in printed
    (line,) = [line for line in printed.splitlines() if "every voxel has the same value" in line]
    assert line.endswith("even_0000.nii.gz: every voxel has the same value")


def test_what_is_strange_in_a_scan_is_told(tiny_dataset, capsys):
    """Resampling gives a constant image values that differ in their last digits."""
    noise = np.random.default_rng(0).normal(100, 30, (1, 9, 10)).astype(np.float32)
    write_scan(tiny_dataset, "slice", noise)
    image = sitk.GetImageFromArray(np.full((8, 9, 10), 7, np.float32))
    image.SetSpacing((0.7, 1.3, 3))
    sitk.WriteImage(image, str(tiny_dataset.images / "even_0000.nii.gz"))
    write_scan(tiny_dataset, "air", noise.repeat(8, 0) - 1e4)
    run()
    printed = capsys.readouterr().out
    assert "slice_0000.nii.gz: a single slice, in a 3d configuration\n" in printed
    assert "even_0000.nii.gz: every voxel has the same value\n" in printed
    assert "air_0000.nii.gz: every voxel has the same value after normalization\n" in printed
    run(configuration="2d_tiny")
    assert "slice_0000" not in capsys.readouterr().out


def test_four_dimensional_image_has_too_many_channels(tiny_dataset):
    write_scan(tiny_dataset, "pair", np.full((2, 8, 9, 10), 7, np.float32))
    with pytest.raises(UserError, match=r"pair_0000\.nii\.gz: read as 2 channels of 8 x 9 x 10 voxels, but .* names 1"):
        run()


def test_scan_without_voxels():
    class Reader:
        def read_images(self, files):
            return np.zeros((1, 0, 4, 4), np.float32), {}

    with pytest.raises(UserError, match=r"a_0000\.png.*no voxels"):
        check_images(["a_0000.png"], Reader(), {"channel_names": {"0": "CT"}})


@pytest.mark.parametrize(
    ("spacing", "crop", "reason"), [(1, 1, "the channels differ in shape"), (2, 0, "RuntimeError")]
)
def test_channels_that_do_not_fit_together(tiny_dataset, spacing, crop, reason):
    """Each file can be read; nnU-Net's reader refuses them together."""
    dataset_json = {**tiny_dataset.dataset_json, "channel_names": {"0": "CT", "1": "CT2"}}
    for folder in (tiny_dataset.raw, tiny_dataset.preprocessed):
        (folder / "dataset.json").write_text(json.dumps(dataset_json))
    for file in [*tiny_dataset.images.iterdir(), *(tiny_dataset.raw / "imagesTr").iterdir()]:
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        other = file.parent / file.name.replace("_0000", "_0001")
        image = sitk.GetImageFromArray(image[crop:])
        image.SetSpacing([1, 1, spacing])
        sitk.WriteImage(image, str(other))
    with pytest.raises(UserError, match=rf"scan_0_0000\.nii\.gz, .*scan_0_0001\.nii\.gz: {reason}"):
        run()
