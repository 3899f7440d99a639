"""What a prediction is measured by, organ by organ."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from joblib import Parallel, delayed
from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn, region_or_label_to_mask
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from surface_distance import compute_robust_hausdorff, compute_surface_dice_at_tolerance, compute_surface_distances

from nnunet_dvcl.data.raw import read_labels
from nnunet_dvcl.data.storage import write_json
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.progress import with_progress
from nnunet_dvcl.tools.model_folders import organ_names

METRICS = ("Dice", "Jaccard", "HD95", "NSD")
"""Shares in [0, 1], but HD95 in mm."""
LOWER_IS_BETTER = ("HD95",)

CaseMetrics = dict[str, dict[str, float]]
"""Organ -> metric -> value, nan where there is none; also ``voxels`` (of the truth) and ``predicted`` (voxels)."""


def measure(
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float],
    organs: Mapping[str, int | Sequence[int]],
    ignore_label: int | None,
    tolerance: float,
) -> CaseMetrics:
    """All metrics of one case.

    Dice and Jaccard are those of nnU-Net's ``summary.json``. HD95 (the larger of the two directed 95th percentiles of
    the distances between the surfaces) and NSD (Nikolov et al., 2018) are surface-distance's, which weighs each element
    of a surface by its area.

    Absent organs, as in nnU-Net: absent from truth and prediction, no value; from one of them, Dice, Jaccard and NSD
    are 0. HD95 has no value in either case.

    Args:
        truth, prediction: [1, *S] label maps, as nnU-Net reads them.
        spacing: mm, one number an axis of S.
        organs: name -> label, or labels of a region.
        ignore_label: voxels that have it in the truth count neither as the organ nor as another one.
        tolerance: mm, of NSD.
    """
    ignored = truth == ignore_label if ignore_label is not None else None
    values = {}
    for organ, labels in organs.items():
        region = labels if isinstance(labels, int) else tuple(labels)
        true, predicted = (region_or_label_to_mask(seg, region) for seg in (truth, prediction))
        tp, fp, fn, _ = (int(count) for count in compute_tp_fp_fn_tn(true, predicted, ignored))
        dice, jaccard = (n * tp / (n * tp + fp + fn) if tp + fp + fn else math.nan for n in (2, 1))
        if ignored is not None:
            predicted = predicted & ~ignored
        values[organ] = {"Dice": dice, "Jaccard": jaccard, **_surface_metrics(true, predicted, spacing, tolerance)}
        values[organ] |= {"voxels": tp + fn, "predicted": tp + fp}
    return values


def _surface_metrics(
    true: np.ndarray, predicted: np.ndarray, spacing: Sequence[float], tolerance: float
) -> dict[str, float]:
    if not (true.any() and predicted.any()):
        return {"HD95": math.nan, "NSD": 0.0 if true.any() or predicted.any() else math.nan}
    # nnU-Net reads a 2d picture as a volume of one slice, whose two faces would be most of its surface
    image = (0, 0) if true.shape[1] == 1 else (0,)
    distances = compute_surface_distances(true[image], predicted[image], tuple(spacing)[len(image) - 1 :])
    return {
        "HD95": float(compute_robust_hausdorff(distances, 95)),
        "NSD": float(compute_surface_dice_at_tolerance(distances, tolerance)),
    }


def measure_files(truth: str, prediction: str, dataset_json: dict, tolerance: float) -> CaseMetrics:
    """`measure` of two files, read as nnU-Net reads them.

    Raises:
        UserError: their shapes differ.
    """
    reader = determine_reader_writer_from_dataset_json(dataset_json, truth, verbose=False)()
    true, properties = read_labels(truth, reader)
    predicted, _ = read_labels(prediction, reader)
    if true.shape != predicted.shape:
        raise UserError(f"{prediction} has the shape {predicted.shape[1:]}, expected {true.shape[1:]} as in {truth}.")
    organs = {name: dataset_json["labels"][name] for name in organ_names(dataset_json)}
    ignore_label = dataset_json["labels"].get("ignore")
    return measure(true, predicted, properties["spacing"], organs, ignore_label, tolerance)


def measure_folders(
    truth: Path, cases: Mapping[Path, Iterable[str]], dataset_json: dict, tolerance: float
) -> dict[Path, dict[str, CaseMetrics]]:
    """The metrics of many folders of predictions; what is measured once is kept beside them, in ``metrics.json``.

    Args:
        truth: folder of the labels.
        cases: folder of predictions -> its cases.

    Returns:
        Folder of predictions -> case -> metrics.
    """
    ending, measured = dataset_json["file_ending"], {folder: _read_kept(folder, tolerance) for folder in cases}
    todo = [(folder, case) for folder in cases for case in cases[folder] if case not in measured[folder]]
    workers = min(default_num_processes, os.cpu_count() or 1, len(todo) // 20)  # a worker takes seconds to start
    results = Parallel(max(workers, 1), return_as="generator")(
        delayed(measure_files)(str(truth / f"{case}{ending}"), str(folder / f"{case}{ending}"), dataset_json, tolerance)
        for folder, case in todo
    )
    progress = with_progress(results, "Metrics", len(todo), "case", print)
    for (folder, case), values in zip(todo, progress, strict=True):
        measured[folder][case] = values
    for folder in {folder for folder, _ in todo}:
        write_json({"tolerance_mm": tolerance, "cases": measured[folder]}, str(folder / "metrics.json"))
    return {folder: {case: measured[folder][case] for case in cases[folder]} for folder in cases}


def _read_kept(folder: Path, tolerance: float) -> dict[str, CaseMetrics]:
    """What was measured before, with this tolerance and since the predictions were made."""
    file = folder / "metrics.json"
    if not file.is_file() or any(other.stat().st_mtime > file.stat().st_mtime for other in folder.iterdir()):
        return {}
    kept = load_json(str(file))
    return kept["cases"] if kept["tolerance_mm"] == tolerance else {}
