"""The phantom: its organs, its anatomy's variation, its files."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_dvcl.tools.demo.phantom import FIELD_OF_VIEW, ORGANS, make_case, voxel_size, write_dataset

SEEDS = range(12)
SMALL = (16, 24, 24)


@pytest.fixture(scope="module")
def cases() -> list[tuple[np.ndarray, np.ndarray]]:
    return [make_case(seed) for seed in SEEDS]


def volumes(labels: np.ndarray) -> np.ndarray:
    """Voxels of each organ, in the order of ORGANS."""
    return np.bincount(labels.ravel(), minlength=len(ORGANS) + 1)[1:]


def touching(labels: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of organs with voxels that share a face."""
    pairs = set()
    for axis in range(3):
        a, b = np.moveaxis(labels, axis, 0)[:-1], np.moveaxis(labels, axis, 0)[1:]
        border = (a != b) & (a > 0) & (b > 0)
        pairs |= {tuple(sorted(pair)) for pair in zip(a[border].tolist(), b[border].tolist(), strict=True)}
    return pairs


def test_types_and_range(cases):
    for image, labels in cases:
        assert (image.dtype, labels.dtype, image.shape) == (np.float32, np.uint8, labels.shape)
        assert np.isfinite(image).all()
        assert image.min() > -1200
        assert image.max() < 700


def test_every_organ_is_in_every_patient(cases):
    for _, labels in cases:
        assert volumes(labels).min() >= 5, dict(zip(ORGANS, volumes(labels), strict=True))


def test_organs_differ_in_size(cases):
    mean = np.mean([volumes(labels) for _, labels in cases], axis=0)
    assert mean.max() > 5 * mean.min()


def test_organs_touch(cases):
    for _, labels in cases:
        assert len(touching(labels)) >= 2


def test_intensity_alone_does_not_tell_organs_apart(cases):
    """At least two separate pairs of organs share more than half of their histograms, all patients together."""
    bins = np.arange(-200, 500, 10)
    histograms = []
    for label in ORGANS.values():
        values = np.concatenate([image[labels == label] for image, labels in cases])
        histograms.append(np.histogram(values, bins)[0] / len(values))
    h = np.array(histograms)
    overlap = np.minimum(h[:, None], h[None]).sum(-1)
    partners = np.argwhere(np.triu(overlap > 0.5, k=1))
    assert len(partners) >= 2
    assert len(np.unique(partners)) >= 4


def test_organs_stay_inside_the_scan(cases):
    """Sideways and front to back; spine and vessels rightly leave it at the top and bottom."""
    for _, labels in cases:
        faces = [labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]]
        assert not any(face.any() for face in faces)


def test_left_and_right_are_the_patients(cases):
    """x grows to the patient's left: the liver is on the right, each kidney on its own side of the vessels."""
    for _, labels in cases:
        x = {organ: np.argwhere(labels == label)[:, 2] for organ, label in ORGANS.items()}
        assert x["liver"].mean() < x["vessels"].mean() < x["spleen"].mean()
        assert x["kidneys"].min() < x["vessels"].min()
        assert x["vessels"].max() < x["kidneys"].max()


def test_surfaces_are_soft():
    """Partial volume: between kidney and fat there are voxels that are neither."""
    image, labels = make_case(0)
    kidneys = labels == ORGANS["kidneys"]
    inner = kidneys[:, 1:-1] & kidneys[:, 2:] & kidneys[:, :-2]
    surface = kidneys[:, 1:-1] & ~inner
    assert image[:, 1:-1][surface].mean() < image[:, 1:-1][inner].mean() - 20


def test_scans_differ_in_the_time_of_the_contrast_agent(cases):
    """In some the vessels are far brighter than the liver, in others they are not."""
    vessels, liver = (
        np.array([image[labels == ORGANS[organ]].mean() for image, labels in cases]) for organ in ("vessels", "liver")
    )
    assert (vessels > liver + 60).any()
    assert (vessels < liver + 20).any()


def test_same_seed_same_voxels():
    for a, b in zip(make_case(3, SMALL), make_case(3, SMALL), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_seed_other_anatomy():
    (image_a, a), (image_b, b) = make_case(3), make_case(4)
    assert (a != b).mean() > 0.02
    assert not np.array_equal(image_a, image_b)


def test_a_finer_grid_shows_the_same_body():
    """Same seed, half the voxel size: eight times the voxels in each organ."""
    _, coarse = make_case(5)
    _, fine = make_case(5, (64, 80, 96))
    ratio = volumes(fine) / volumes(coarse)
    large = volumes(coarse) > 100
    np.testing.assert_allclose(ratio[large], 8, rtol=0.15)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    raw = tmp_path_factory.mktemp("raw")
    return write_dataset(raw, "Dataset900_Phantom", num_labeled=2, num_unlabeled=3, num_test=1, shape=SMALL)


def test_dataset_has_nnunets_layout(dataset):
    files = {folder.name: sorted(p.name for p in folder.iterdir()) for folder in dataset.iterdir() if folder.is_dir()}
    assert files == {
        "imagesTr": ["phantom_000_0000.nii.gz", "phantom_001_0000.nii.gz"],
        "labelsTr": ["phantom_000.nii.gz", "phantom_001.nii.gz"],
        "imagesTr_unlabeled": [f"phantom_{i:03d}_0000.nii.gz" for i in (2, 3, 4)],
        "imagesTs": ["phantom_005_0000.nii.gz"],
        "labelsTs": ["phantom_005.nii.gz"],
    }


def test_files_hold_the_case_in_the_patients_orientation(dataset):
    image, labels = make_case(1, SMALL)
    for file, voxels in (("imagesTr/phantom_001_0000", image), ("labelsTr/phantom_001", labels)):
        stored = sitk.ReadImage(str(dataset / f"{file}.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(stored), voxels)
        assert stored.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
        np.testing.assert_allclose(stored.GetSpacing()[::-1], voxel_size(SMALL), rtol=1e-6)
        corner = np.array(stored.GetOrigin()) - np.array(stored.GetSpacing()) / 2
        np.testing.assert_allclose(corner[::-1], -np.array(FIELD_OF_VIEW) / 2, rtol=1e-5)


def test_dataset_seed_changes_the_patients(tmp_path):
    kwargs = {"num_labeled": 1, "num_unlabeled": 0, "num_test": 0, "shape": SMALL}
    folders = [write_dataset(tmp_path / str(seed), seed=seed, **kwargs) for seed in (0, 1)]
    a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(f / "labelsTr/phantom_000.nii.gz"))) for f in folders)
    assert not np.array_equal(a, b)


def test_nnunet_finds_the_dataset_sound(dataset):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        verify_dataset_integrity(str(dataset), num_processes=1)
    assert "If you didn't see any error messages then your dataset is most likely OK" in said.getvalue()
    assert "Warning" not in said.getvalue()
