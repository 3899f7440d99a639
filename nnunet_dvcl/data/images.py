"""What is wrong with the image files of a scan, told by file."""

from collections.abc import Sequence

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_dvcl.data.folders import num_channels


class BadImage(ValueError):
    """An image that no network can be trained on; the message names the file and the reason."""


def check_images(image_files: Sequence[str], reader: BaseReaderWriter, dataset_json: dict) -> None:
    """Read each file of one scan by itself, so that a problem names its file.

    Raises:
        BadImage: unreadable, no voxels, NaN or infinite, only zeros, or channels that do not fit together or
            are not as many as the data set's.
    """
    channels, nonzero, shapes = 0, False, []
    for file in image_files:
        image = _read(file, reader)
        if image.size == 0:
            raise BadImage(f"{file}: the image has no voxels, its shape is {image.shape[1:]}")
        if not np.isfinite(image).all():
            raise BadImage(f"{file}: the image has NaN or infinite voxels")
        channels += image.shape[0]
        shapes.append(image.shape[1:])
        nonzero |= bool(image.any())
    if len(set(shapes)) > 1:
        raise BadImage(f"{', '.join(image_files)}: the channels differ in shape: {', '.join(map(str, shapes))}")
    if not nonzero:
        raise BadImage(f"{', '.join(image_files)}: the image is empty, every voxel is 0")
    if channels != num_channels(dataset_json):
        raise BadImage(
            f"{', '.join(image_files)}: {channels} channel(s), but dataset.json names {num_channels(dataset_json)}"
        )


def _read(file: str, reader: BaseReaderWriter) -> np.ndarray:
    """[channels, *S]"""
    try:
        return reader.read_images([file])[0]
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise BadImage(f"{file}: cannot be read ({reason[-1].strip() if reason else type(error).__name__})") from error
