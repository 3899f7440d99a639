"""Networks of one training side by side on the validation cases of its fold."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from os.path import basename, join

import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunet_dvcl.data.folders import DatasetFolders
from nnunet_dvcl.data.splits import validation_cases
from nnunet_dvcl.data.storage import complete_cases
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.progress import with_progress

Weights = Mapping[str, Tensor]
AVERAGED = "averaged"


def preprocessed_validation_cases(predictor: nnUNetPredictor, fold: int | str) -> tuple[DatasetFolders, list[str]]:
    """Where the cases lie, and those that the fold validates on.

    ``UserError`` where they are not known or not preprocessed on this machine, or no network was held back from them.
    """
    folders = DatasetFolders.of(predictor.plans_manager, predictor.configuration_manager)
    if predictor.configuration_manager.previous_stage_name is not None:
        raise UserError("The networks of a cascade need the predictions of the stage before.")
    if fold == "all":
        raise UserError("Fold all trains on every case and has no validation cases of its own.")
    labeled = complete_cases(folders.labeled, folders.dataset_class())
    return folders, validation_cases(folders.splits_file, fold, labeled)


def compare_networks(
    predictor: nnUNetPredictor, networks: Mapping[str, Weights], folders: DatasetFolders, cases: Sequence[str]
) -> dict[str, dict]:
    """Predicts preprocessed cases as nnU-Net's own validation does, and scores them as it does.

    Returns the content of nnU-Net's ``summary.json`` for each network by its name, and, under `AVERAGED`, for the mean
    of their logits, which is what nnU-Net predicts from several folds.
    """
    dataset = folders.dataset_class()(folders.labeled, list(cases))
    with tempfile.TemporaryDirectory(prefix="nnunet_dvcl_") as root:
        for case in with_progress(cases, "Validation cases", len(cases), "case", print):
            data, _, _, properties = dataset.load_case(case)
            logits = {}
            for name, weights in networks.items():
                predictor.list_of_parameters = [weights]
                logits[name] = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data[:]))
            logits[AVERAGED] = sum(logits.values()) / len(networks)
            for name, predicted in logits.items():
                os.makedirs(join(root, name), exist_ok=True)
                export_prediction_from_logits(
                    predicted,
                    properties,
                    predictor.configuration_manager,
                    predictor.plans_manager,
                    predictor.dataset_json,
                    join(root, name, case),
                    num_threads_torch=torch.get_num_threads(),
                )
        return {name: _score(predictor, folders, join(root, name)) for name in (*networks, AVERAGED)}


def _score(predictor: nnUNetPredictor, folders: DatasetFolders, predictions: str) -> dict:
    labels = predictor.label_manager
    summary = compute_metrics_on_folder(
        join(folders.preprocessed, "gt_segmentations"),
        predictions,
        None,
        predictor.plans_manager.image_reader_writer_class(),
        predictor.dataset_json["file_ending"],
        labels.foreground_regions if labels.has_regions else labels.foreground_labels,
        labels.ignore_label,
        num_processes=min(default_num_processes, len(os.listdir(predictions))),
    )
    for case in summary["metric_per_case"]:  # the predictions are gone, and the model may leave this machine
        case |= {key: basename(case[key]) for key in ("prediction_file", "reference_file")}
    return summary
