"""Half an image file, and voxels that no reader tells of, in every format that nnU-Net reads."""

import gzip

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nibabel import Nifti1Image, Nifti2Image
from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES
from skimage import io

from nnunet_dvcl.data.raw import check_images
from nnunet_dvcl.errors import UserError

READERS = {reader.__name__: reader for reader in LIST_OF_IO_CLASSES}
FORMATS = [(name, ending) for name, reader in READERS.items() for ending in reader.supported_file_endings]
FORMATS += [("SimpleITKIO", ".nii")]
VOXELS = np.random.default_rng(0).normal(100, 30, (11, 12, 13))
ONE_CHANNEL = {"channel_names": {"0": "CT"}}


def write(folder, reader: str, ending: str, dtype="float32", voxels=VOXELS, compressed=True):
    file, voxels = str(folder / f"a_0000{ending}"), voxels.astype(dtype)
    if reader == "NaturalImage2DIO":
        io.imsave(file, voxels[0].astype(np.uint8), check_contrast=False)
    elif reader == "Tiff3DIO":
        tifffile.imwrite(file, voxels, compression="zlib" if compressed else None)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(voxels), file, compressed)
    return file


def check(reader: str, file: str) -> list[str]:
    return check_images([file], READERS[reader](), ONE_CHANNEL)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize(("reader", "ending"), FORMATS)
def test_a_file_that_was_copied_in_part_is_named_or_has_all_voxels(tmp_path, reader, ending, dtype, compressed):
    file = write(tmp_path, reader, ending, dtype, compressed=compressed)
    assert check(reader, file) == []
    with open(file, "rb") as stream:
        content = stream.read()
    voxels = READERS[reader]().read_images([file])[0]
    for size in (len(content) // 3, len(content) * 9 // 10, len(content) - 1):
        with open(file, "wb") as stream:
            stream.write(content[:size])
        try:
            check(reader, file)
        except UserError as error:
            assert str(error).startswith(f"{file}: cannot be read")  # noqa: PT017
        else:  # what is missing means nothing: part of a checksum, or of the list of a TIFF's pages
            np.testing.assert_array_equal(READERS[reader]().read_images([file])[0], voxels)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_a_byte_that_was_changed_is_seen_by_the_checksum(tmp_path, reader):
    file = write(tmp_path, reader, ".nii.gz")
    with open(file, "rb+") as stream:
        middle = stream.seek(0, 2) // 2
        stream.seek(middle)
        (byte,) = stream.read(1)
        stream.seek(middle)
        stream.write(bytes([byte ^ 255]))
    with pytest.raises(UserError, match=r"a_0000\.nii\.gz: cannot be read to its end"):
        check(reader, file)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("reader", "kind", "name", "pack"),
    [
        ("SimpleITKIO", Nifti1Image, "a_0000.nii.gz", gzip.compress),
        ("SimpleITKIO", Nifti1Image, "not_packed_0000.nii.gz", bytes),
        ("SimpleITKIO", Nifti1Image, "a_0000.nii", bytes),
        ("NibabelIO", Nifti2Image, "a_0000.nii.gz", gzip.compress),
        ("NibabelIO", Nifti2Image, "a_0000.nii", bytes),
    ],
)
def test_every_kind_of_nifti(tmp_path, reader, kind, name, pack, order):
    content = kind(VOXELS.astype(f"{order}i2"), np.eye(4)).to_bytes()
    file = tmp_path / name
    file.write_bytes(pack(content))
    assert check(reader, str(file)) == []
    file.write_bytes(pack(content)[:-9])
    with pytest.raises(UserError, match="cannot be read to its end"):
        check(reader, str(file))
    file.write_bytes(pack(content[:-1]))
    with pytest.raises(UserError, match=r"\(it has \d+ bytes, its header says \d+\); was it copied in part\?"):
        check(reader, str(file))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("reader", "ending"), [x for x in FORMATS if x[0] != "NaturalImage2DIO"])
def test_nan_is_named_or_told_where_simpleitk_reads_it_as_0(tmp_path, reader, ending, dtype, value):
    voxels = VOXELS.copy()
    voxels[0, 0, 0] = value
    file = write(tmp_path, reader, ending, dtype, voxels)
    if (reader, ending) in (("SimpleITKIO", ".nii"), ("SimpleITKIO", ".nii.gz")):
        assert READERS[reader]().read_images([file])[0][0, 0, 0, 0] == 0
        assert check(reader, file) == ["NaN or infinite voxels, which SimpleITKIO reads as 0"]
    else:
        with pytest.raises(UserError, match="the image has NaN or infinite voxels"):
            check(reader, file)
