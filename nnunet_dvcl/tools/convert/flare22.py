"""FLARE 2022: abdominal CT, 13 organs, 50 labeled and 2000 unlabeled scans for training."""

from nnunet_dvcl.tools.convert.release import Part, Release

# A scan of the test set can have the name of one for validation.
_VALIDATION = r"(?i:[^/]*(?:tuning|val)[^/]*)/(?:.*/)?"

FLARE22 = Release(
    name="FLARE22",
    organs={  # the columns of the paper's Table 2
        "liver": 1,
        "spleen": 3,
        "stomach": 11,
        "left_kidney": 13,
        "right_kidney": 2,
        "aorta": 5,
        "pancreas": 4,
        "inferior_vena_cava": 6,
        "duodenum": 12,
        "gallbladder": 9,
        "esophagus": 10,
        "right_adrenal_gland": 7,
        "left_adrenal_gland": 8,
    },
    parts=(
        Part(
            name="labeled training scans",
            case="FLARE22_Tr_{id}",
            images=r"FLARE22_Tr_(?P<id>\d{4})_0000\.nii\.gz",
            labels=r"FLARE22_Tr_(?P<id>\d{4})\.nii\.gz",
            expected=50,
        ),
        Part(
            name="unlabeled training scans",
            case="Case_{id}",
            images=r"Case_(?P<id>\d{5})_0000\.nii\.gz",
            folder_without_label="imagesTr_unlabeled",
            expected=2000,
        ),
        Part(
            name="validation scans",
            case="FLARETs_{id}",
            images=_VALIDATION + r"FLARETs_(?P<id>\d{4})_0000\.nii\.gz",
            labels=_VALIDATION + r"FLARETs_(?P<id>\d{4})\.nii\.gz",
            folder_without_label="imagesTs",
            expected=50,
            optional=True,
        ),
    ),
    reference="https://flare22.grand-challenge.org",
)
