"""What nnU-Net's readers do not tell of an image file: that its end is missing, that voxels are NaN.

SimpleITK fills what is missing of a NIfTI file with zeros, that of a GIPL file with whatever is in memory, and reads
NaN and infinity of a NIfTI file as 0; gzip's checksum is looked at by no reader. The other formats end with an error.
"""

import gzip
import os

import numpy as np
import SimpleITK as sitk
from nibabel import Nifti1Image, Nifti2Image

_GIPL_HEADER = 256  # bytes
_NIFTI2_HEADER = 540


def check_whole(file: str) -> bool:
    """Reads an image file to its end; returns whether it has no voxel that is NaN or infinite, as far as is known.

    Raises:
        Exception: whatever the file answers with; ``ValueError`` where it is shorter than its header says.
    """
    if file.endswith((".nii", ".nii.gz")):
        return _check_nifti(file)
    if file.endswith(".gipl"):
        voxels = sitk.GetArrayViewFromImage(sitk.ReadImage(file)).nbytes
        _check_size(os.path.getsize(file), _GIPL_HEADER + voxels)
    return True


def _check_nifti(file: str) -> bool:
    content = _content(file)
    is_nifti2 = _NIFTI2_HEADER in (int.from_bytes(content[:4], order) for order in ("little", "big"))
    image = (Nifti2Image if is_nifti2 else Nifti1Image).from_bytes(content)
    dtype = image.get_data_dtype()
    _check_size(len(content), image.dataobj.offset + int(np.prod(image.shape)) * dtype.itemsize)
    return dtype.kind not in "fc" or bool(np.isfinite(image.dataobj.get_unscaled()).all())


def _content(file: str) -> bytes:
    """Without the compression; some files are named .nii.gz and have none, which readers do not mind."""
    with open(file, "rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
    with gzip.open(file) if is_gzip else open(file, "rb") as stream:
        return stream.read()


def _check_size(size: int, expected: int) -> None:
    if size < expected:
        raise ValueError(f"it has {size} bytes, its header says {expected}")
