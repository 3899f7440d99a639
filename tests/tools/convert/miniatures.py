"""Each release in miniature: its folders and names, two or three scans of 8 x 9 x 10 voxels a part."""

from pathlib import Path

import nibabel
import numpy as np

from nnunet_dvcl.tools.convert import RELEASES

# image, segmentation
LAYOUTS: dict[str, list[tuple[str, str | None]]] = {
    "flare22": [
        *(
            (
                f"Training/FLARE22_LabeledCase50/images/FLARE22_Tr_{i:04d}_0000.nii.gz",
                f"Training/FLARE22_LabeledCase50/labels/FLARE22_Tr_{i:04d}.nii.gz",
            )
            for i in (1, 2)
        ),
        ("Training/FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz", None),
        ("Training/FLARE22_UnlabeledCase1-1000/Case_01000_0000.nii.gz", None),
        ("Training/FLARE22_UnlabeledCase1001-2000/Case_01001_0000.nii.gz", None),
        ("Tuning/images/FLARETs_0001_0000.nii.gz", "Tuning/labels/FLARETs_0001.nii.gz"),
        ("Tuning/images/FLARETs_0002_0000.nii.gz", None),
        ("Testing/FLARETs_0001_0000.nii.gz", None),
    ],
    "amos": [
        ("amos22/imagesTr/amos_0001.nii.gz", "amos22/labelsTr/amos_0001.nii.gz"),
        ("amos22/imagesTr/amos_0410.nii.gz", "amos22/labelsTr/amos_0410.nii.gz"),
        ("amos22/imagesTr/amos_0507.nii.gz", "amos22/labelsTr/amos_0507.nii.gz"),
        ("amos22/imagesVa/amos_0008.nii.gz", "amos22/labelsVa/amos_0008.nii.gz"),
        ("amos22/imagesVa/amos_0600.nii.gz", "amos22/labelsVa/amos_0600.nii.gz"),
        ("amos22/imagesTs/amos_0002.nii.gz", None),
        ("amos22/imagesTs/amos_0500.nii.gz", None),
        ("amos22/imagesTs/amos_0501.nii.gz", None),
        ("__MACOSX/amos22/imagesTr/._amos_0001.nii.gz", None),
    ],
    "mmwhs": [
        *((f"ct_train/ct_train_{i}_image.nii.gz", f"ct_train/ct_train_{i}_label.nii.gz") for i in (1001, 1020)),
        ("ct_test/ct_test_2001_image.nii.gz", None),
        ("mr_train/mr_train_1001_image.nii.gz", "mr_train/mr_train_1001_label.nii.gz"),
        ("mr_test/mr_test_2001_image.nii.gz", None),
        ("ct_train/old_ct_train_1001_image.nii.gz", None),
        ("ct_train/ct_train_1020_image.nii.gz.part.nii", None),
    ],
    "btcv": [
        *(
            (f"RawData/Training/img/img{i:04d}.nii.gz", f"RawData/Training/label/label{i:04d}.nii.gz")
            for i in (1, 10, 40)
        ),
        ("RawData/Testing/img/img0061.nii.gz", None),
        ("RegData/Training-Training/img/0002/img0002-0001.nii.gz", None),
    ],
}

# nnU-Net's folder -> the cases in it
CONVERTED: dict[str, dict[str, set[str]]] = {
    "flare22": {
        "imagesTr": {"FLARE22_Tr_0001", "FLARE22_Tr_0002", "FLARETs_0001"},
        "imagesTr_unlabeled": {"Case_00001", "Case_01000", "Case_01001"},
        "imagesTs": {"FLARETs_0002"},
    },
    "amos": {"imagesTr": {"amos_0001", "amos_0410", "amos_0008"}, "imagesTs": {"amos_0002", "amos_0500"}},
    "mmwhs": {"imagesTr": {"ct_train_1001", "ct_train_1020"}, "imagesTs": {"ct_test_2001"}},
    "btcv": {"imagesTr": {"img0001", "img0010", "img0040"}, "imagesTs": {"img0061"}},
}

AFFINE = np.array([[-0.8, 0, 0, 120.5], [0, 0.7, 0.1, -80.25], [0, -0.05, 2.5, 33], [0, 0, 0, 1]])
"""Of every scan: another orientation than nibabel's own, slightly oblique."""


def segmentation_of(dataset: str) -> np.ndarray:
    """[8, 9, 10] uint16: four voxels of background and of each organ, in the order of the labels, then background."""
    values = [0, *RELEASES[dataset].organs.values()]
    segmentation = np.zeros((8, 9, 10), np.uint16)
    segmentation.reshape(-1)[: 4 * len(values)] = np.repeat(values, 4)
    return segmentation


def write(file: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), file)


def read(file: Path) -> np.ndarray:
    return np.asarray(nibabel.load(file).dataobj)
