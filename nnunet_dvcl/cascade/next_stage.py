"""What the next stage of a cascade needs of the unlabeled cases: network A's prediction of each, in its shape."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from os.path import isfile, join
from typing import Protocol

import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.inference.export_prediction import resample_and_save
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import nn

from nnunet_dvcl import distributed
from nnunet_dvcl.cascade.previous_stage import (
    PreviousStage,
    next_stages,
    predicted_cases,
    stage_before,
    with_previous_stage,
)
from nnunet_dvcl.data import UnlabeledDataset, get_unlabeled_dataset
from nnunet_dvcl.data.folders import DatasetFolders
from nnunet_dvcl.data.messages import bullet_list
from nnunet_dvcl.data.processes import Log, in_processes
from nnunet_dvcl.data.storage import HIDDEN_FOLDER, remove_leftovers, whole_files, write_json
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.lock import locked_where_possible
from nnunet_dvcl.networks import unwrap
from nnunet_dvcl.progress import with_progress


class UnlabeledOptions(Protocol):
    """What a trainer's hyper-parameters say of the scans of ``imagesTr_unlabeled``; see `get_unlabeled_dataset`."""

    unlabeled_folder: bool
    skip_bad_scans: bool


def predict_unlabeled(
    predictor: nnUNetPredictor,
    trainer: str,
    configuration: str,
    fold: int | str,
    num_processes: int,
    log: Log,
    read_options: Callable[[dict], UnlabeledOptions],
) -> list[str]:
    """Predicts the unlabeled cases of a fold, from both sources, for each next stage that the plans name.

    What the same network has predicted before is kept, unless the case was preprocessed anew since. Scans that the next
    stage has not yet preprocessed are preprocessed first. Several ranks divide the cases.

    Args:
        predictor: with the network; tiles and mirroring as nnU-Net validates.
        trainer, configuration, fold: of the network, as nnU-Net's commands name them.
        num_processes: that resample and save; this process predicts.
        read_options: the trainer's, of a resolved configuration.

    Returns:
        The folders with the predictions, one a next stage. A prediction is nnU-Net's label map, [*S] of the next stage.

    Raises:
        UserError: a next stage is not preprocessed, or there is no unlabeled case.
    """
    plans_manager = predictor.plans_manager
    configuration_manager = plans_manager.get_configuration(configuration)
    before = stage_before(plans_manager, trainer, configuration, fold)
    folders = []
    for next_stage in next_stages(plans_manager, configuration):
        stage = PreviousStage(plans_manager, trainer, configuration, next_stage, fold)
        target_manager = plans_manager.get_configuration(next_stage)
        options = read_options(target_manager.configuration)
        of_both = predictor.dataset_json, fold, num_processes, log, options.unlabeled_folder
        skip_bad, predicted = options.skip_bad_scans, before and before.unlabeled
        cases = get_unlabeled_dataset(plans_manager, configuration_manager, *of_both, predicted, skip_bad)
        targets = get_unlabeled_dataset(plans_manager, target_manager, *of_both, skip_bad=skip_bad)
        _predict_stage(predictor, stage, cases, targets, num_processes, log)
        folders.append(stage.unlabeled)
    return folders


def _predict_stage(
    predictor: nnUNetPredictor,
    stage: PreviousStage,
    cases: UnlabeledDataset,
    targets: UnlabeledDataset,
    num_processes: int,
    log: Log,
) -> None:
    if strangers := sorted(set(targets.identifiers) - set(cases.identifiers)):
        raise UserError(
            f"These scans are preprocessed for {stage.next_stage}, but not for {stage.configuration}: run nnunet_dvcl "
            f"preprocess -d {stage.dataset} -c {stage.configuration} where imagesTr_unlabeled is.\n"
            f"{bullet_list(strangers)}"
        )
    folder = stage.unlabeled
    hidden = join(folder, HIDDEN_FOLDER)
    os.makedirs(hidden, exist_ok=True)
    first = distributed.rank() == 0
    with locked_where_possible(join(hidden, "lock"), log) if first else nullcontext() as alone:
        if first:
            if alone:  # else they may be those of a process at work
                remove_leftovers(folder)
            _keep_what_was_made_by(predictor.network, folder)
        distributed.barrier()
        made_at = {case: file.stat().st_mtime for case, file in predicted_cases(folder).items()}
        own = targets.identifiers[distributed.rank() :: distributed.world_size()]
        todo = [case for case in own if made_at.get(case, 0) < max(cases.written_at(case), targets.written_at(case))]
        log(f"Predicting {len(todo)} of {len(own)} unlabeled cases for {stage.next_stage} into {folder}")
        predictions = _predictions(predictor, stage, cases, targets, todo)
        saved = in_processes(_save, predictions, min(num_processes, len(todo)))
        list(with_progress(saved, "Unlabeled cases", len(todo), "case", log, shown=first, leave=True))
        distributed.barrier()


def _predictions(
    predictor: nnUNetPredictor,
    stage: PreviousStage,
    cases: UnlabeledDataset,
    targets: UnlabeledDataset,
    todo: list[str],
) -> Iterator[tuple]:
    """What `_save` needs of each case: made one by one, as logits are large."""
    plans_manager = predictor.plans_manager
    dataset_class = DatasetFolders.of(plans_manager, plans_manager.get_configuration(stage.next_stage)).dataset_class()
    for case in _in_step(todo):
        image, _, previous, properties = cases.load_case(case)
        image, target = image[:], targets.load_case(case)[0]
        if previous is not None:
            image = with_previous_stage(image, previous[:], predictor.label_manager)
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(image)).cpu().numpy()
        arguments = {
            "predicted": logits,
            "target_shape": target.shape[1:],
            "plans_manager": plans_manager,
            "configuration_manager": predictor.configuration_manager,
            "properties_dict": properties,
            "dataset_json_dict_or_file": predictor.dataset_json,
            "dataset_class": dataset_class,
        }
        yield stage.unlabeled, case, arguments


def _in_step(cases: list[str]) -> Iterator[str]:
    """This rank's cases, one while each other rank has one of its own: whoever waits for 30 minutes gives up."""
    for place in range(max(distributed.gather_objects(len(cases)))):
        if place < len(cases):
            yield cases[place]
        distributed.barrier()


def _save(folder: str, case: str, arguments: dict) -> None:
    """nnU-Net's own resampling of logits, and its segmentation; whole or not at all."""
    with whole_files(folder) as temporary:
        resample_and_save(output_file=join(temporary, case), num_threads_torch=torch.get_num_threads(), **arguments)


def _keep_what_was_made_by(network: nn.Module, folder: str) -> None:
    """Empties ``folder`` where another network has predicted what lies in it."""
    file, fingerprint = join(folder, HIDDEN_FOLDER, "network.json"), {"sha256": _fingerprint(network)}
    if isfile(file) and load_json(file) == fingerprint:
        return
    for prediction in predicted_cases(folder).values():
        prediction.unlink()
    write_json(fingerprint, file)


def _fingerprint(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, weights in unwrap(network).state_dict().items():
        digest.update(name.encode())
        digest.update(weights.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
