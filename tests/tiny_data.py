"""A small nnU-Net data set, planned and preprocessed by nnU-Net itself."""

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from thread_pools import threads_for_processes

NAME = "Dataset901_Tiny"
LABELED = tuple(f"case_{i}" for i in range(6))
SCANS = tuple(f"scan_{i}" for i in range(3))
IGNORED = 3
_LABELS = {"background": 0, "large": 1, "small": 2}
_REGIONS = {"background": 0, "whole": [1, 2], "small": [2]}
# label mode -> what dataset.json says of the labels
LABEL_MODES = {
    "labels": {"labels": _LABELS},
    "ignore": {"labels": _LABELS | {"ignore": IGNORED}},
    "regions": {"labels": _REGIONS, "regions_class_order": [1, 2]},
    "regions + ignore": {"labels": _REGIONS | {"ignore": IGNORED}, "regions_class_order": [1, 2]},
}


@dataclass(frozen=True)
class TinyDataset:
    """Six labeled cases ``case_0`` to ``case_5`` (labels 0, 1, 2), three scans ``scan_0`` to ``scan_2`` without labels.

    About 20 x 28 x 24 voxels, one CT channel, ``.nii.gz``; labeled cases preprocessed for 2d and 3d_fullres.
    Configurations for tests: ``2d_tiny`` and ``3d_tiny`` (patch 16, batch size 2, three stages of 4, 8, 16 features).
    """

    root: Path

    name = NAME
    labeled = LABELED
    scans = SCANS

    @property
    def raw(self) -> Path:
        """nnUNet_raw/Dataset901_Tiny"""
        return self.root / "raw" / NAME

    @property
    def preprocessed(self) -> Path:
        """nnUNet_preprocessed/Dataset901_Tiny"""
        return self.root / "preprocessed" / NAME

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def images(self) -> Path:
        return self.raw / "imagesTr_unlabeled"

    @property
    def env(self) -> dict[str, str]:
        """nnU-Net's environment variables; ``{**os.environ, **tiny.env}`` for a subprocess."""
        return {
            "nnUNet_raw": str(self.raw.parent),
            "nnUNet_preprocessed": str(self.preprocessed.parent),
            "nnUNet_results": str(self.results),
            "nnUNet_n_proc_DA": "0",
            "nnUNet_compile": "f",
        }

    @property
    def plans(self) -> dict:
        return json.loads((self.preprocessed / "nnUNetPlans.json").read_text())

    @property
    def dataset_json(self) -> dict:
        return json.loads((self.preprocessed / "dataset.json").read_text())

    def managers(self, configuration: str = "3d_tiny"):
        """nnU-Net's PlansManager and ConfigurationManager."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        plans_manager = PlansManager(self.plans)
        return plans_manager, plans_manager.get_configuration(configuration)

    def read_what_scans_depend_on(self) -> tuple[dict[str, bytes], set[str]]:
        """File name -> content, of all that their preprocessing reads; and the formats of the labeled cases."""
        files = (*self.preprocessed.glob("*.json"), *self.raw.glob("*.json"), *self.images.iterdir())
        formats = {file.suffix for file in self.preprocessed.glob("nnUNetPlans_3d_fullres/*")}
        return {str(file.relative_to(self.root)): file.read_bytes() for file in files}, formats

    def write_plans(self, plans: dict) -> None:
        (self.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))

    def write_splits(self, *splits: dict) -> None:
        """``splits_final.json``, one dict a fold."""
        (self.preprocessed / "splits_final.json").write_text(json.dumps(splits))


def preprocess_scans(tiny: TinyDataset) -> None:
    """Those that are not yet; in this process: a pool of workers takes seconds to start."""
    from nnunet_dvcl.data import preprocess_unlabeled

    for configuration in ("3d_fullres", "2d"):
        preprocess_unlabeled(tiny.name, configuration, num_processes=1)


def make_tiny(folder: Path) -> None:
    tiny = TinyDataset(folder)
    _write_raw(tiny)
    # nnU-Net's planner takes the number of workers for torch's number of threads, which cannot be 0.
    with mock.patch.dict(os.environ, {**tiny.env, "nnUNet_n_proc_DA": "1"}):
        _plan_and_preprocess(tiny)
    _add_tiny_configurations(tiny)


def add_cascade(tiny: TinyDataset) -> None:
    plans = tiny.plans
    plans["configurations"] |= {
        "3d_lowres_tiny": {
            "inherits_from": "3d_tiny",
            "data_identifier": "nnUNetPlans_3d_lowres_tiny",
            "spacing": [1.5, 1.5, 1.5],
            "next_stage": "cascade_tiny",
        },
        "cascade_tiny": {"inherits_from": "3d_tiny", "previous_stage": "3d_lowres_tiny"},
    }
    tiny.write_plans(plans)
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    with mock.patch.dict(os.environ, tiny.env), threads_for_processes():
        api.preprocess_dataset(901, configurations=["3d_lowres_tiny"], num_processes=[1], show_progress_bar=False)


def _write_raw(tiny: TinyDataset) -> None:
    rng = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr", "imagesTr_unlabeled"):
        (tiny.raw / folder).mkdir(parents=True)
    for case in LABELED:
        image, labels = make_case(rng)
        write_image(tiny.raw / "imagesTr" / f"{case}_0000.nii.gz", image)
        write_image(tiny.raw / "labelsTr" / f"{case}.nii.gz", labels)
    for case in SCANS:
        write_image(tiny.images / f"{case}_0000.nii.gz", make_case(rng)[0])
    dataset_json = {
        "channel_names": {"0": "CT"},
        "numTraining": len(LABELED),
        "file_ending": ".nii.gz",
        **LABEL_MODES["labels"],
    }
    (tiny.raw / "dataset.json").write_text(json.dumps(dataset_json))


def change_labels(tiny: TinyDataset, label_mode: str) -> None:
    """What nnU-Net would have made of the data set in another label mode, in much less time.

    With an ignore label the first half of each case along the last axis has it.
    """
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    for folder in (tiny.raw, tiny.preprocessed):
        (folder / "dataset.json").write_text(json.dumps(tiny.dataset_json | LABEL_MODES[label_mode]))
    plans_manager, _ = tiny.managers()
    label_manager = plans_manager.get_label_manager(tiny.dataset_json)
    classes = list(label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels)
    if label_manager.has_ignore_label:
        classes.append([-1, *label_manager.all_labels])
        for file in [*tiny.raw.glob("labelsTr/*"), *tiny.preprocessed.glob("gt_segmentations/*")]:
            write_image(file, _half_ignored(read_image(file)))
    for folder in tiny.preprocessed.glob("nnUNetPlans_*"):
        dataset = infer_dataset_class(str(folder))(str(folder))
        for case in dataset.identifiers:
            data, labels, _, properties = dataset.load_case(case)
            data, labels = data[:], labels[:]
            for file in folder.glob(f"{case}[._]*"):  # a Blosc2 file cannot be written over
                file.unlink()
            if label_manager.has_ignore_label:
                labels = _half_ignored(labels)
            properties["class_locations"] = DefaultPreprocessor._sample_foreground_locations(labels, classes)
            dataset.save_case(data, labels, properties, str(folder / case), chunks=data.shape, blocks=data.shape)


def _half_ignored(labels: np.ndarray) -> np.ndarray:
    labels = labels.copy()
    half = labels[..., : labels.shape[-1] // 2]
    half[half >= 0] = IGNORED
    return labels


def make_case(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Image (float32) and labels (uint8) [Z, Y, X] of two noisy ellipsoids; the corners of the image are 0."""
    shape = np.array([20, 28, 24]) + rng.integers(-2, 3, 3)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    image = rng.normal(30, 10, shape)
    labels = np.zeros(shape, np.uint8)
    for label, radius, intensity in ((1, 0.6, 120), (2, 0.3, 220)):
        center = rng.uniform(-0.25, 0.25, (3, 1, 1, 1))
        inside = (((grid - center) / radius) ** 2).sum(0) < 1
        image[inside] += intensity
        labels[inside] = label
    image[(np.abs(grid) > 0.85).all(0)] = 0
    return image.astype(np.float32), labels


def write_image(file: Path, array: np.ndarray) -> None:
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(array), str(file))


def read_image(file: Path) -> np.ndarray:
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def _plan_and_preprocess(tiny: TinyDataset) -> None:
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    with threads_for_processes():
        api.extract_fingerprint_dataset(901, num_processes=1, verbose=False, show_progress_bar=False)
        api.plan_experiment_dataset(901)
        api.preprocess_dataset(901, configurations=["2d", "3d_fullres"], num_processes=[1, 1], show_progress_bar=False)


def _add_tiny_configurations(tiny: TinyDataset) -> None:
    plans = tiny.plans
    for name, parent, patch_size in (("2d_tiny", "2d", [16, 16]), ("3d_tiny", "3d_fullres", [16, 16, 16])):
        dim = len(patch_size)
        architecture = copy.deepcopy(plans["configurations"][parent]["architecture"])
        architecture["arch_kwargs"] |= {
            "n_stages": 3,
            "features_per_stage": [4, 8, 16],
            "kernel_sizes": [[3] * dim] * 3,
            "strides": [[1] * dim, [2] * dim, [2] * dim],
            "n_conv_per_stage": [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
        }
        plans["configurations"][name] = {
            "inherits_from": parent,
            "patch_size": patch_size,
            "batch_size": 2,
            "architecture": architecture,
        }
    tiny.write_plans(plans)
