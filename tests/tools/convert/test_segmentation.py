"""A segmentation against its image: geometry, values."""

import nibabel
import numpy as np
import pytest
from miniatures import AFFINE, segmentation_of, write

from nnunet_dvcl.tools.convert.segmentation import BadScan, load_image, renumbered

LABELS = {0: 0, 500: 1, 600: 2, 420: 3, 550: 4, 205: 5, 820: 6, 850: 7, 421: 3}


@pytest.fixture
def pair(tmp_path):
    """``pair(voxels, affine)``: segmentation and image files."""

    def make(voxels=None, affine=AFFINE):
        write(tmp_path / "image.nii.gz", np.ones((8, 9, 10), np.int16))
        write(tmp_path / "label.nii.gz", segmentation_of("mmwhs") if voxels is None else voxels, affine)
        return str(tmp_path / "label.nii.gz"), str(tmp_path / "image.nii.gz")

    return make


def moved(**changes):
    """AFFINE with another ``origin``, ``spacing`` (factor) or ``direction`` (exchange of two axes)."""
    affine = AFFINE.copy()
    affine[:3, 3] += changes.get("origin", 0)
    affine[:3, 2] *= changes.get("spacing", 1)
    if "direction" in changes:
        affine[:, [0, 1]] = affine[:, [1, 0]]
    return affine


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_each_value_becomes_its_label(pair, dtype):
    found = np.asarray(renumbered(*pair(segmentation_of("mmwhs").astype(dtype)), LABELS).dataobj)
    assert found.dtype == np.uint8
    assert found.reshape(-1)[:32].tolist() == np.repeat(range(8), 4).tolist()
    assert not found.reshape(-1)[32:].any()


def test_a_misprint_becomes_what_is_meant(pair):
    voxels = segmentation_of("mmwhs")
    voxels[-1, -1, -1] = 421
    assert np.asarray(renumbered(*pair(voxels), LABELS).dataobj)[-1, -1, -1] == 3


@pytest.mark.parametrize("value", [7, 422, 851, 60000, -1])
def test_an_unknown_value_is_named(pair, value):
    voxels = segmentation_of("mmwhs").astype(np.int32)
    voxels[-1, -1, -1] = value
    label, image = pair(voxels)
    with pytest.raises(BadScan, match=rf"label\.nii\.gz: has the value {value:g}; known are 0, 205, 420, 421") as error:
        renumbered(label, image, LABELS)
    assert label in str(error.value)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_values_must_be_whole_numbers(pair, value):
    voxels = segmentation_of("mmwhs").astype(np.float32)
    voxels[-1, -1, -1] = value
    with pytest.raises(BadScan, match=r"label\.nii\.gz: has values that are no whole numbers"):
        renumbered(*pair(voxels), LABELS)


def test_a_segmentation_without_an_organ_is_an_error(pair):
    with pytest.raises(BadScan, match="every voxel is background"):
        renumbered(*pair(np.zeros((8, 9, 10), np.uint8)), LABELS)


def test_shapes_must_agree_in_any_case(pair):
    label, image = pair(segmentation_of("mmwhs").transpose(1, 0, 2))
    for ignore_geometry in (False, True):
        with pytest.raises(BadScan, match=r"has the shape \(9, 8, 10\), its image .* \(8, 9, 10\)"):
            renumbered(label, image, LABELS, ignore_geometry)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"origin": 0.2}, "origin"),
        ({"spacing": 1.02}, "spacing"),
        ({"direction": True}, "direction"),
        ({"origin": (0, 0, -40)}, r"origin \[120.5, -80.25, -7.0\] instead of \[120.5, -80.25, 33.0\]"),
    ],
)
def test_another_geometry_is_named_and_can_be_ignored(pair, change, told):
    label, image = pair(affine=moved(**change))
    with pytest.raises(BadScan, match=f"{label}: lies elsewhere than its image {image}: .*{told}.*--ignore-geometry"):
        renumbered(label, image, LABELS)
    assert np.allclose(renumbered(label, image, LABELS, ignore_geometry=True).affine, AFFINE)


@pytest.mark.parametrize("change", [{"origin": 0.03}, {"spacing": 1.001}])
def test_less_than_a_tenth_of_a_voxel_is_nothing(pair, change):
    renumbered(*pair(affine=moved(**change)), LABELS)


def test_the_result_has_exactly_the_geometry_of_the_image(pair, tmp_path):
    label, image = pair(affine=moved(origin=0.03))
    both = nibabel.load(image)
    both.set_qform(AFFINE, code=1)
    both.set_sform(AFFINE, code=1)
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 9, 10), np.int16), None, both.header), image)
    result = renumbered(label, image, LABELS)
    nibabel.save(result, tmp_path / "result.nii.gz")
    written, expected = nibabel.load(tmp_path / "result.nii.gz"), nibabel.load(image)
    assert np.array_equal(written.affine, expected.affine)
    assert written.header.get_zooms() == expected.header.get_zooms()
    for written_form, form in zip(written.get_qform(coded=True), expected.get_qform(coded=True), strict=True):
        assert np.array_equal(written_form, form)


def test_files_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "text.nii.gz").write_text("no image")
    write(tmp_path / "four.nii.gz", np.ones((4, 4, 4, 2), np.int16))
    flat = nibabel.Nifti1Image(np.ones((4, 4, 4), np.int16), None)
    flat.header["sform_code"], flat.header["srow_x"], flat.header["srow_y"] = 1, (1, 0, 0, 0), (0, 1, 0, 0)
    nibabel.save(flat, tmp_path / "nowhere.nii.gz")
    for name, told in (("text", "cannot be read"), ("four", "three dimensions"), ("nowhere", "no usable geometry")):
        with pytest.raises(BadScan, match=rf"{name}\.nii\.gz: .*{told}"):
            load_image(str(tmp_path / f"{name}.nii.gz"))


def test_a_file_that_is_cut_off_is_named(pair):
    label, image = pair(np.random.default_rng(0).integers(0, 9, (8, 9, 10)).astype(np.uint16))
    with open(label, "rb+") as file:
        file.truncate(600)
    with pytest.raises(BadScan, match=r"label\.nii\.gz: cannot be read"):
        renumbered(label, image, LABELS)
