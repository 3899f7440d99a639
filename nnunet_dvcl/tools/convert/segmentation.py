"""Check a segmentation against its image, and number its organs as nnU-Net needs them."""

from collections.abc import Mapping
from itertools import product

import nibabel
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes

TOLERANCE = 0.1  # voxels by which the places of a corner may differ in the image and in the segmentation
_UNKNOWN = 255


class BadScan(ValueError):
    """A scan that cannot be converted; the message names the file and the reason."""


def load_image(file: str) -> nibabel.Nifti1Image:
    """A NIfTI file of three dimensions with a usable geometry, else `BadScan`; its voxels are not read."""
    try:
        image = nibabel.load(file)
        affine, shape = image.affine, image.shape
    except Exception as error:
        raise BadScan(f"{file}: cannot be read ({error})") from error
    if len(shape) != 3:
        raise BadScan(f"{file}: expected three dimensions, found the shape {shape}")
    if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise BadScan(f"{file}: the header has no usable geometry")
    return image


def renumbered(
    label_file: str, image_file: str, label_of_value: Mapping[int, int], ignore_geometry: bool = False
) -> nibabel.Nifti1Image:
    """A segmentation with nnU-Net's labels (uint8), in exactly the geometry of its image.

    `BadScan` for a file that cannot be read, a value that is not known, no organ, or another geometry than the image's;
    with `ignore_geometry` only the shapes must agree.
    """
    image, segmentation = load_image(image_file), load_image(label_file)
    if segmentation.shape != image.shape:
        raise BadScan(f"{label_file}: has the shape {segmentation.shape}, its image {image_file} {image.shape}")
    if not ignore_geometry and _displacement(image, segmentation) > TOLERANCE:
        raise BadScan(
            f"{label_file}: lies elsewhere than its image {image_file}: {_differences(segmentation, image)} "
            f"(with --ignore-geometry the segmentation gets the geometry of the image)"
        )
    labels = _labels(label_file, segmentation, label_of_value)
    header = image.header.copy()
    header.set_data_dtype(np.uint8)
    header["cal_min"] = header["cal_max"] = 0
    return nibabel.Nifti1Image(labels, image.affine, header)


def _labels(file: str, segmentation: nibabel.Nifti1Image, label_of_value: Mapping[int, int]) -> np.ndarray:
    try:
        values = np.asanyarray(segmentation.dataobj)
    except Exception as error:
        raise BadScan(f"{file}: cannot be read ({error})") from error
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise BadScan(f"{file}: has values that are no whole numbers")
    top = max(label_of_value)
    table = np.full(top + 2, _UNKNOWN, np.uint8)  # the last entry is for what lies above or below
    table[list(label_of_value)] = list(label_of_value.values())
    labels = table[np.clip(values.astype(np.int64), -1, top + 1)]
    if unknown := [f"{value:g}" for value in np.unique(values[labels == _UNKNOWN])[:5]]:
        known = ", ".join(map(str, sorted(label_of_value)))
        raise BadScan(f"{file}: has the value {', '.join(unknown)}; known are {known}")
    if not labels.any():
        raise BadScan(f"{file}: every voxel is background")
    return labels


def _displacement(image: nibabel.Nifti1Image, segmentation: nibabel.Nifti1Image) -> float:
    """The largest distance between the places of a corner, in voxels (of the image's smallest spacing)."""
    corners = list(product(*((0, n - 1) for n in image.shape)))
    moved = apply_affine(segmentation.affine, corners) - apply_affine(image.affine, corners)
    return float(np.linalg.norm(moved, axis=1).max() / min(voxel_sizes(image.affine)))


def _differences(segmentation: nibabel.Nifti1Image, image: nibabel.Nifti1Image) -> str:
    """Spacing, origin and direction as far as they differ."""
    ours, theirs = _geometry(segmentation.affine), _geometry(image.affine)
    return ", ".join(f"{name} {ours[name]} instead of {theirs[name]}" for name in ours if ours[name] != theirs[name])


def _geometry(affine: np.ndarray) -> dict[str, list]:
    spacing = voxel_sizes(affine)
    values = {"spacing": spacing, "origin": affine[:3, 3], "direction": affine[:3, :3] / spacing}
    return {name: (np.round(value, 4) + 0.0).tolist() for name, value in values.items()}  # 0.0 instead of -0.0
