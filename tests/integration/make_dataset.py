"""One of the four data sets of nnU-Net's integration test, made from Dataset004_Hippocampus: raw data and a split.

996: regions and an ignore label. 997: regions. 998: an ignore label. 999: plain labels. The labels are nnU-Net's, the
cases fewer: a sixth of them lose their labels (imagesTr_unlabeled), a sixth are for testing (imagesTs).
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nnunetv2.utilities.crossval_split import generate_crossval_split

NAMES = {996: "Hippocampus_regions_ignore", 997: "Hippocampus_regions", 998: "Hippocampus_ignore", 999: "Hippocampus"}
REGIONS = {"background": 0, "hippocampus": [1, 2], "anterior": 1}
LABELS = {
    996: {"labels": REGIONS | {"ignore": 3}, "regions_class_order": [2, 1]},
    997: {"labels": REGIONS, "regions_class_order": [2, 1]},
    998: {"labels": {"background": 0, "Anterior": 1, "ignore": 2}},
    999: {"labels": {"background": 0, "Anterior": 1, "Posterior": 2}},
}
ANNOTATED = 0.1 / 3  # share of the slices along each axis that 996 keeps, as nnU-Net's does


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=int, choices=NAMES)
    parser.add_argument("-n", type=int, help="number of cases; all of them if not given")
    arguments = parser.parse_args()
    source = Path(os.environ["NNUNET_DVCL_HIPPOCAMPUS"])
    name = f"Dataset{arguments.dataset}_IntegrationTest_{NAMES[arguments.dataset]}"
    raw, preprocessed = (Path(os.environ[v]) / name for v in ("nnUNet_raw", "nnUNet_preprocessed"))

    cases = sorted(file.name.removesuffix(".nii.gz") for file in (source / "labelsTr").glob("*.nii.gz"))[: arguments.n]
    sixth = len(cases) // 6
    labeled, unlabeled, test = cases[: -2 * sixth], cases[-2 * sixth : -sixth], cases[-sixth:]
    for folder, chosen in (("imagesTr", labeled), ("imagesTr_unlabeled", unlabeled), ("imagesTs", test)):
        (raw / folder).mkdir(parents=True)
        for case in chosen:
            shutil.copy(source / "imagesTr" / f"{case}_0000.nii.gz", raw / folder)
    (raw / "labelsTr").mkdir()
    rng = np.random.default_rng(1234)
    for case in labeled:
        write_labels(source / "labelsTr" / f"{case}.nii.gz", raw / "labelsTr", arguments.dataset, rng)
    content = json.loads((source / "dataset.json").read_text())
    content |= LABELS[arguments.dataset] | {"name": name, "numTraining": len(labeled)}
    (raw / "dataset.json").write_text(json.dumps(content, indent=1))
    preprocessed.mkdir(parents=True)
    (preprocessed / "splits_final.json").write_text(json.dumps(splits(labeled), indent=1))


def write_labels(file: Path, folder: Path, dataset: int, rng: np.random.Generator) -> None:
    if dataset != 996:
        shutil.copy(file, folder)
        return
    image = sitk.ReadImage(str(file))
    labels = sitk.GetArrayFromImage(image)
    kept = np.zeros(labels.shape, bool)
    for axis, size in enumerate(labels.shape):
        slices = rng.choice(size, max(1, round(size * ANNOTATED)), replace=False)
        np.moveaxis(kept, axis, 0)[slices] = True
    sparse = sitk.GetImageFromArray(np.where(kept, labels, 3).astype(labels.dtype))
    sparse.CopyInformation(image)
    sitk.WriteImage(sparse, str(folder / file.name))


def splits(labeled: list[str]) -> list[dict]:
    """nnU-Net's five folds; each withholds the labels of a quarter of its training cases."""
    folds = generate_crossval_split(labeled)
    for fold in folds:
        train = list(fold["train"])
        withheld = train[:: len(train) // max(1, len(train) // 4)]
        fold |= {"train": [case for case in train if case not in withheld], "unlabeled": withheld}
        fold["val"] = list(fold["val"])
    return folds


if __name__ == "__main__":
    main()
