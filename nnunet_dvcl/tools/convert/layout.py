"""Find the scans of a release in the folder into which it was unpacked."""

import os
import re
from collections.abc import Iterable
from os.path import isdir, join
from pathlib import Path
from typing import NamedTuple

from nnunet_dvcl.data.messages import bullet_list
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.convert.releases import Part, Release

ENDING = ".nii.gz"


class Scan(NamedTuple):
    """One scan of a release and its place in nnU-Net's raw data set; ``label`` is None where there is none."""

    case: str
    image: str
    label: str | None
    folder: str


def find_scans(release: Release, source: str, any_count: bool = False) -> list[Scan]:
    """The scans of all parts, in the order of parts and names.

    Folders above those that a part's pattern names may have any names, and other files may lie beside.

    Raises:
        UserError: no such folder; a scan that is there twice, or has an image or a segmentation alone; without
            `any_count`, a number of scans that is not the release's.
    """
    if not isdir(source):
        raise UserError(f"{source} is no folder. Give the folder into which {release.name} was unpacked.")
    walk = os.walk(source, followlinks=True)
    files = sorted(Path(folder, name).relative_to(source).as_posix() for folder, _, names in walk for name in names)
    found = {part: _scans(part, source, files) for part in release.parts}
    counts = [
        f"{part.name}: {len(scans)} found, the release has {part.expected}"
        for part, scans in found.items()
        if not part.may_have(len(scans), any_count)
    ]
    if counts:
        hint = "" if any_count else "; with --any-count what is there is converted"
        raise UserError(
            f"{source} does not hold the whole of {release.name}. Archives must be unpacked, and files and folders "
            f"must have the names of the release ({release.reference}){hint}:\n{bullet_list(counts)}"
        )
    return [scan for scans in found.values() for scan in scans]


def _scans(part: Part, source: str, files: Iterable[str]) -> list[Scan]:
    images, labels = _by_id(part.images, files), _by_id(part.labels, files)
    if twice := [" and ".join(paths) for paths in (*images.values(), *labels.values()) if len(paths) > 1]:
        raise UserError(f"{source} holds {part.name} more than once. Keep one of each:\n{bullet_list(twice)}")
    alone = [f"{labels[i][0]}: there is no image for it" for i in sorted(labels.keys() - images.keys())]
    if part.without_label is None:
        alone += [f"{images[i][0]}: there is no segmentation of it" for i in sorted(images.keys() - labels.keys())]
    if alone:
        raise UserError(
            f"{source}: download the missing files of the {part.name}, or remove these:\n{bullet_list(alone)}"
        )
    return [
        Scan(
            part.case.format(id=i),
            join(source, images[i][0]),
            join(source, labels[i][0]) if i in labels else None,
            "imagesTr" if i in labels else part.without_label,
        )
        for i in sorted(images)
    ]


def _by_id(pattern: str | None, files: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for file in files if pattern else ():
        if match := re.search(f"(?:^|/){pattern}{re.escape(ENDING)}$", file):
            found.setdefault(match[1], []).append(file)
    return found
