"""BTCV (Multi-Atlas Labeling Beyond the Cranial Vault, abdomen): CT, 13 organs."""

from nnunet_dvcl.tools.convert.release import Part, Release

BTCV = Release(
    name="BTCV",
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
        "portal_and_splenic_vein": 10,
        "pancreas": 11,
        "right_adrenal_gland": 12,
        "left_adrenal_gland": 13,
    },
    parts=(
        Part(
            name="training scans",
            case="img{id}",
            images=r"Training/img/img(?P<id>\d{4})\.nii\.gz",
            labels=r"Training/label/label(?P<id>\d{4})\.nii\.gz",
            expected=30,
        ),
        Part(
            name="test scans",
            case="img{id}",
            images=r"Testing/img/img(?P<id>\d{4})\.nii\.gz",
            folder_without_label="imagesTs",
            expected=20,
            optional=True,
        ),
    ),
    reference="https://www.synapse.org/Synapse:syn3193805/wiki/217789",
)
