"""What is known of a data set as its authors distribute it. Imports nothing heavy: the command line reads it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """Scans of a release that belong together.

    Attributes:
        name: for messages.
        case: the case's identifier, with ``{id}`` in it.
        images: regular expression of an image's path inside of the release, from a folder or a file on to the end; the
            group ``id`` tells the scans of the part apart.
        expected: number of scans in the release.
        labels: the same for the segmentations, or None where there are none.
        folder_without_label: nnU-Net's folder for a scan without a segmentation; None: each must have one.
        optional: a download of its own, which may be missing as a whole.
    """

    name: str
    case: str
    images: str
    expected: int
    labels: str | None = None
    folder_without_label: str | None = None
    optional: bool = False


@dataclass(frozen=True)
class Release:
    """A data set as it is distributed.

    Attributes:
        name: behind the number in nnU-Net's name of the data set.
        organs: organ -> its value in the release's segmentations. The order is that of nnU-Net's labels, 1, 2, ...
        parts: all that is converted.
        reference: where the data set comes from.
        misprints: a value that occurs by mistake -> the value that is meant.
    """

    name: str
    organs: Mapping[str, int]
    parts: tuple[Part, ...]
    reference: str
    misprints: Mapping[int, int] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, int]:
        """As in ``dataset.json``: background 0, organs from 1 on."""
        return {"background": 0} | {organ: label for label, organ in enumerate(self.organs, start=1)}

    @property
    def label_of_value(self) -> dict[int, int]:
        """Value in the release -> nnU-Net's label."""
        labels = {0: 0} | {value: self.labels[organ] for organ, value in self.organs.items()}
        return labels | {wrong: labels[right] for wrong, right in self.misprints.items()}
