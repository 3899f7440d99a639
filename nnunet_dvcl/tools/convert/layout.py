"""Find the scans of a release in the folder into which it was unpacked."""

import os
import re
from collections.abc import Iterable, Iterator
from os.path import isdir, join, relpath
from typing import NamedTuple

from nnunet_dvcl.data.messages import bullet_list
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.convert.release import Part, Release


class Scan(NamedTuple):
    """One scan of a release and its place in nnU-Net's raw data set; ``label`` is None where there is none."""

    case: str
    image: str
    label: str | None
    folder: str


def find_scans(release: Release, source: str, any_count: bool = False) -> list[Scan]:
    """The scans of all parts, in the order of parts and names.

    Folders above those that a part's pattern names may have any names, and other files may lie beside.

    Args:
        release: what to look for.
        source: the folder that holds the unpacked release; links in it are followed.
        any_count: accept another number of scans than the release is known to have.

    Raises:
        UserError: no such folder; a scan that is there twice, or has an image or a segmentation alone; a number of
            scans that is not the release's.
    """
    if not isdir(source):
        raise UserError(f"{source} is no folder. Give the folder into which {release.name} was unpacked.")
    files = sorted(_files(source))
    found = [(part, _scans(part, source, files)) for part in release.parts]
    counts = [problem for part, scans in found for problem in _count_problems(part, len(scans), any_count)]
    if counts:
        hint = "" if any_count else "; with --any-count what is there is converted"
        raise UserError(
            f"{source} does not hold the whole of {release.name}. Archives must be unpacked, and files and folders "
            f"must have the names of the release ({release.reference}){hint}:\n{bullet_list(counts)}"
        )
    return [scan for _, scans in found for scan in scans]


def _files(source: str) -> Iterator[str]:
    """Paths of the files inside of ``source``, with ``/``."""
    for folder, _, names in os.walk(source, followlinks=True):
        yield from (relpath(join(folder, name), source).replace(os.sep, "/") for name in names)


def _scans(part: Part, source: str, files: Iterable[str]) -> list[Scan]:
    images = _by_id(part.images, files)
    labels = _by_id(part.labels, files) if part.labels else {}
    twice = [" and ".join(paths) for found in (images, labels) for paths in found.values() if len(paths) > 1]
    if twice:
        raise UserError(f"{source} holds {part.name} more than once. Keep one of each:\n{bullet_list(twice)}")
    alone = [f"{labels[i][0]}: there is no image for it" for i in sorted(labels.keys() - images.keys())]
    if part.folder_without_label is None:
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
            "imagesTr" if i in labels else part.folder_without_label,
        )
        for i in sorted(images)
    ]


def _by_id(pattern: str, files: Iterable[str]) -> dict[str, list[str]]:
    matches = ((re.search(f"(?:^|/){pattern}$", file), file) for file in files)
    found: dict[str, list[str]] = {}
    for match, file in matches:
        if match:
            found.setdefault(match["id"], []).append(file)
    return found


def _count_problems(part: Part, count: int, any_count: bool) -> list[str]:
    if count == part.expected or (part.optional and not count):
        return []
    if any_count and (count or part.folder_without_label):
        return []
    return [f"{part.name}: {count} found, the release has {part.expected}"]
