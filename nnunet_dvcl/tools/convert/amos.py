"""AMOS 2022: abdominal CT, 15 organs. The release has MR scans too, with numbers above 500; they are left out."""

from nnunet_dvcl.tools.convert.release import Part, Release

_CT = r"amos_(?P<id>0[0-4]\d\d|0500)\.nii\.gz"

AMOS = Release(
    name="AMOS22",
    organs={
        "spleen": 1,
        "right_kidney": 2,
        "left_kidney": 3,
        "gallbladder": 4,
        "esophagus": 5,
        "liver": 6,
        "stomach": 7,
        "aorta": 8,
        "inferior_vena_cava": 9,
        "pancreas": 10,
        "right_adrenal_gland": 11,
        "left_adrenal_gland": 12,
        "duodenum": 13,
        "bladder": 14,
        "prostate_uterus": 15,
    },
    parts=(
        Part(
            name="training scans (CT)",
            case="amos_{id}",
            images=f"imagesTr/{_CT}",
            labels=f"labelsTr/{_CT}",
            expected=200,
        ),
        Part(
            name="validation scans (CT)",
            case="amos_{id}",
            images=f"imagesVa/{_CT}",
            labels=f"labelsVa/{_CT}",
            expected=100,
        ),
        Part(
            name="test scans (CT)",
            case="amos_{id}",
            images=f"imagesTs/{_CT}",
            folder_without_label="imagesTs",
            expected=200,
            optional=True,
        ),
    ),
    reference="https://zenodo.org/records/7262581",
)
