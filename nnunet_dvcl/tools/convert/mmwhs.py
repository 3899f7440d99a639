"""MM-WHS 2017: cardiac CT, 7 structures. The release has as many MR scans, ``mr_*``; they are left out."""

from nnunet_dvcl.tools.convert.release import Part, Release

MMWHS = Release(
    name="MMWHS",
    organs={
        "left_ventricle": 500,
        "right_ventricle": 600,
        "left_atrium": 420,
        "right_atrium": 550,
        "myocardium": 205,
        "ascending_aorta": 820,
        "pulmonary_artery": 850,
    },
    misprints={421: 420},
    parts=(
        Part(
            name="training scans (CT)",
            case="ct_train_{id}",
            images=r"ct_train_(?P<id>\d{4})_image\.nii\.gz",
            labels=r"ct_train_(?P<id>\d{4})_label\.nii\.gz",
            expected=20,
        ),
        Part(
            name="test scans (CT)",
            case="ct_test_{id}",
            images=r"ct_test_(?P<id>\d{4})_image\.nii\.gz",
            folder_without_label="imagesTs",
            expected=40,
            optional=True,
        ),
    ),
    reference="https://zmiclab.github.io/zxh/0/mmwhs/",
)
