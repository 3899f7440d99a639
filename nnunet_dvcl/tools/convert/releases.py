"""What is known of the data sets as their authors distribute them. Imports nothing heavy: the command line reads it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """Scans of a release that belong together."""

    name: str  # for messages
    expected: int  # the number of scans in the release
    case: str  # the case's identifier, with {id} in it
    # regular expressions of the path of an image, and of its segmentation where there is one, inside of the release,
    # from a folder or a file on, without the file's ending; the group tells the scans of the part apart
    images: str
    labels: str | None = None
    without_label: str | None = None  # nnU-Net's folder for a scan without a segmentation; None: each must have one

    def may_have(self, count: int, any_count: bool) -> bool:
        """Whether a download of so many scans can be converted; `any_count`: also one that is not whole.

        What no one trains on is a download of its own, which may be missing.
        """
        if count == 0:
            return self.without_label == "imagesTs" or (any_count and self.without_label is not None)
        return any_count or count == self.expected


@dataclass(frozen=True)
class Release:
    """A data set as it is distributed."""

    name: str  # behind the number in nnU-Net's name of the data set
    reference: str
    organs: Mapping[
        str, int
    ]  # organ -> its value in the segmentations; the order is that of nnU-Net's labels, 1, 2, ...
    parts: tuple[Part, ...]
    misprints: Mapping[int, int] = field(default_factory=dict)  # a value that occurs by mistake -> what is meant

    @property
    def labels(self) -> dict[str, int]:
        """As in ``dataset.json``: background 0, organs from 1 on."""
        return {"background": 0} | {organ: label for label, organ in enumerate(self.organs, start=1)}

    @property
    def label_of_value(self) -> dict[int, int]:
        """Value in the release -> nnU-Net's label."""
        labels = {0: 0} | {value: self.labels[organ] for organ, value in self.organs.items()}
        return labels | {wrong: labels[right] for wrong, right in self.misprints.items()}


def _organs(names: str, *values: int) -> dict[str, int]:
    """Without values the organs are numbered, from 1 on."""
    organs = names.split()
    return dict(zip(organs, values or range(1, len(organs) + 1), strict=True))


# AMOS has MR scans too, with numbers above 500; they are left out.
_AMOS_CT = r"amos_(0[0-4]\d\d|0500)"

# A scan of FLARE22's test set can have the name of one for validation.
_FLARETS = r"(?i:[^/]*(?:tuning|val)[^/]*)/(?:.*/)?FLARETs_(\d{4})"

RELEASES = {
    # abdominal CT, 50 labeled and 2000 unlabeled scans for training
    "flare22": Release(
        "FLARE22",
        "https://flare22.grand-challenge.org",
        organs=_organs(  # the columns of the paper's Table 2
            "liver spleen stomach left_kidney right_kidney aorta pancreas inferior_vena_cava duodenum gallbladder "
            "esophagus right_adrenal_gland left_adrenal_gland",
            *(1, 3, 11, 13, 2, 5, 4, 6, 12, 9, 10, 7, 8),
        ),
        parts=(
            Part("labeled training scans", 50, "FLARE22_Tr_{id}", r"FLARE22_Tr_(\d{4})_0000", r"FLARE22_Tr_(\d{4})"),
            Part(
                "unlabeled training scans", 2000, "Case_{id}", r"Case_(\d{5})_0000", without_label="imagesTr_unlabeled"
            ),
            Part("validation scans", 50, "FLARETs_{id}", f"{_FLARETS}_0000", _FLARETS, "imagesTs"),
        ),
    ),
    # abdominal CT
    "amos": Release(
        "AMOS22",
        "https://zenodo.org/records/7262581",
        organs=_organs(
            "spleen right_kidney left_kidney gallbladder esophagus liver stomach aorta inferior_vena_cava pancreas "
            "right_adrenal_gland left_adrenal_gland duodenum bladder prostate_uterus"
        ),
        parts=(
            Part("training scans (CT)", 200, "amos_{id}", f"imagesTr/{_AMOS_CT}", f"labelsTr/{_AMOS_CT}"),
            Part("validation scans (CT)", 100, "amos_{id}", f"imagesVa/{_AMOS_CT}", f"labelsVa/{_AMOS_CT}"),
            Part("test scans (CT)", 200, "amos_{id}", f"imagesTs/{_AMOS_CT}", without_label="imagesTs"),
        ),
    ),
    # cardiac CT; as many MR scans, mr_*, are left out
    "mmwhs": Release(
        "MMWHS",
        "https://zmiclab.github.io/zxh/0/mmwhs/",
        organs=_organs(
            "left_ventricle right_ventricle left_atrium right_atrium myocardium ascending_aorta pulmonary_artery",
            *(500, 600, 420, 550, 205, 820, 850),
        ),
        parts=(
            Part("training scans (CT)", 20, "ct_train_{id}", r"ct_train_(\d{4})_image", r"ct_train_(\d{4})_label"),
            Part("test scans (CT)", 40, "ct_test_{id}", r"ct_test_(\d{4})_image", without_label="imagesTs"),
        ),
        misprints={421: 420},
    ),
    # Multi-Atlas Labeling Beyond the Cranial Vault, abdominal CT
    "btcv": Release(
        "BTCV",
        "https://www.synapse.org/Synapse:syn3193805/wiki/217789",
        organs=_organs(
            "spleen right_kidney left_kidney gallbladder esophagus liver stomach aorta inferior_vena_cava "
            "portal_and_splenic_vein pancreas right_adrenal_gland left_adrenal_gland"
        ),
        parts=(
            Part("training scans", 30, "img{id}", r"Training/img/img(\d{4})", r"Training/label/label(\d{4})"),
            Part("test scans", 20, "img{id}", r"Testing/img/img(\d{4})", without_label="imagesTs"),
        ),
    ),
}
"""Data set, as the command line calls it -> what is known of it."""
