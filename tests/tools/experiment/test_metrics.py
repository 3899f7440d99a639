"""Metrics of shapes whose values are known, and absent organs as nnU-Net has them."""

import math

import numpy as np
import pytest
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from tiny_data import write_image

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.experiment import metrics
from nnunet_dvcl.tools.experiment.metrics import measure, measure_files, measure_folders

SPACING = (2.0, 1.0, 1.0)
DATASET = {"labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}


def cube(start: int, label: int = 1, size: int = 6) -> np.ndarray:
    """[1, 16, 16, 16] with a cube that begins at `start` along the first axis."""
    volume = np.zeros((1, 16, 16, 16), np.uint8)
    volume[0, start : start + size, 4 : 4 + size, 4 : 4 + size] = label
    return volume


def test_a_perfect_prediction():
    values = measure(cube(3), cube(3), SPACING, {"a": 1}, None, 1.0)["a"]
    assert values == {"Dice": 1, "Jaccard": 1, "HD95": 0, "NSD": 1, "voxels": 216, "predicted": 216}


def test_a_shift_by_one_voxel():
    """Along the first axis, whose voxels are 2 mm: 5 of 6 slices overlap, the two far faces are 2 mm away."""
    values = measure(cube(3), cube(4), SPACING, {"a": 1}, None, 1.9)["a"]
    assert values["Dice"] == pytest.approx(5 / 6)
    assert values["Jaccard"] == pytest.approx(5 / 7)
    assert values["HD95"] == 2.0
    assert 0 < values["NSD"] < 1
    assert measure(cube(3), cube(4), SPACING, {"a": 1}, None, 2.0)["a"]["NSD"] == 1


def test_hd95_forgives_an_outlier_and_the_maximum_does_not():
    stray = cube(3)
    stray[0, 15, 15, 15] = 1
    assert measure(cube(3), stray, SPACING, {"a": 1}, None, 1.0)["a"]["HD95"] == 0


@pytest.mark.parametrize(
    ("truth", "prediction", "overlap", "hd95"),
    [(0, 0, math.nan, math.nan), (1, 0, 0.0, math.nan), (0, 1, 0.0, math.nan)],
)
def test_absent_organs(truth, prediction, overlap, hd95):
    values = measure(cube(3, truth), cube(3, prediction), SPACING, {"a": 1}, None, 1.0)["a"]
    assert [values[name] for name in metrics.METRICS] == pytest.approx([overlap, overlap, hd95, overlap], nan_ok=True)
    assert (values["voxels"], values["predicted"]) == (216 * truth, 216 * prediction)


def test_ignored_voxels_do_not_count():
    truth, prediction = cube(3), cube(3)
    truth[0, 3:5][truth[0, 3:5] == 1] = 9
    prediction[0, :2] = 1
    truth[0, :2] = 9
    assert measure(truth, prediction, SPACING, {"a": 1}, 9, 1.0)["a"]["Dice"] == 1
    assert measure(truth, prediction, SPACING, {"a": 1}, 9, 1.0)["a"]["NSD"] == 1
    assert measure(truth, prediction, SPACING, {"a": 1}, None, 1.0)["a"]["Dice"] < 1


def test_regions():
    both = np.maximum(cube(3, 1), cube(9, 2, 4))
    values = measure(both, cube(3, 1), SPACING, {"whole": [1, 2], "b": [2]}, None, 1.0)
    assert values["whole"]["Dice"] == pytest.approx(2 * 216 / (2 * 216 + 64))
    assert values["b"]["voxels"] == 64


def test_a_picture_has_an_outline_and_no_faces():
    """A 2d case is one slice; the faces of a slab would be most of its surface, and all of them at distance 0."""
    truth, prediction = cube(3)[:, 4:5], np.roll(cube(3)[:, 4:5], 4, axis=2)
    values = measure(truth, prediction, (999.0, 1.0, 1.0), {"a": 1}, None, 1.0)["a"]
    assert values["HD95"] == 4.0
    assert values["NSD"] < 0.75


def test_dice_and_jaccard_are_nnunets(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("truth", "prediction"):
        write_image(tmp_path / f"{name}.nii.gz", rng.integers(0, 3, (6, 7, 8)).astype(np.uint8))
    files = [str(tmp_path / f"{name}.nii.gz") for name in ("truth", "prediction")]
    ours = measure_files(*files, DATASET, 1.0)
    theirs = compute_metrics(*files, SimpleITKIO(), [1, 2])["metrics"]
    for organ, label in (("a", 1), ("b", 2)):
        assert ours[organ]["Dice"] == pytest.approx(theirs[label]["Dice"])
        assert ours[organ]["Jaccard"] == pytest.approx(theirs[label]["IoU"])
        assert (ours[organ]["voxels"], ours[organ]["predicted"]) == (theirs[label]["n_ref"], theirs[label]["n_pred"])


def test_another_shape_is_refused(tmp_path):
    write_image(tmp_path / "truth.nii.gz", np.zeros((4, 4, 4), np.uint8))
    write_image(tmp_path / "prediction.nii.gz", np.zeros((4, 4, 5), np.uint8))
    with pytest.raises(UserError, match=r"has the shape \(4, 4, 5\), expected \(4, 4, 4\)"):
        measure_files(str(tmp_path / "truth.nii.gz"), str(tmp_path / "prediction.nii.gz"), DATASET, 1.0)


def test_what_is_measured_is_kept_until_a_prediction_or_the_tolerance_changes(tmp_path, monkeypatch):
    truth, predictions = tmp_path / "truth", tmp_path / "predictions"
    for folder in (truth, predictions):
        folder.mkdir()
        write_image(folder / "x.nii.gz", cube(3)[0])
    calls = []
    original = metrics.measure_files
    monkeypatch.setattr(metrics, "measure_files", lambda *args: calls.append(args) or original(*args))

    def run(tolerance=1.0):
        return measure_folders(truth, {predictions: ["x"]}, DATASET, tolerance)[predictions]["x"]["a"]

    assert run()["Dice"] == run()["Dice"] == 1
    assert len(calls) == 1
    assert run(2.0)["Dice"] == 1
    assert len(calls) == 2
    write_image(predictions / "x.nii.gz", cube(4)[0])
    assert run(2.0)["Dice"] == pytest.approx(5 / 6)
    assert math.isnan(measure_folders(truth, {predictions: ["x"]}, DATASET, 2.0)[predictions]["x"]["b"]["Dice"])
