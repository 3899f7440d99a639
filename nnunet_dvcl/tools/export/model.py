"""``nnunet_dvcl export``: a network that a training holds, or both twins, as a model of plain nnU-Net."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from os.path import basename, dirname, isdir, isfile, join
from typing import NamedTuple

import torch
from nnunetv2.evaluation.evaluate_predictions import save_summary_json
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.device import find_device
from nnunet_dvcl.tools.export import comparison
from nnunet_dvcl.tools.model_folders import TrainedFold, choose_checkpoints, find_folds, load_checkpoint
from nnunet_dvcl.tools.trainer_classes import find_trainer_class

_CHECKPOINT_KEYS = ("trainer_name", "init_args", "inference_allowed_mirroring_axes")
_MODEL_FILES = ("plans.json", "dataset.json", "dataset_fingerprint.json")


class _Source(NamedTuple):
    """One checkpoint of a trained model, and every network that it holds, as its trainer names them."""

    trained: TrainedFold
    file: str
    checkpoint: dict
    networks: dict[str, comparison.Weights]


def networks_meant(network: str) -> tuple[str, ...]:
    """Those that become folds: a trainer's own name of one (in lower case for twins), or "both" twins."""
    return {"a": ("A",), "b": ("B",), "both": ("A", "B")}.get(network, (network,))


def export_model(
    result_folder: str,
    network: str,
    to: str,
    fold: str | None = None,
    checkpoint: str = "checkpoint_final.pth",
    compare: bool = True,
    device: str | None = None,
) -> str:
    """Writes a folder that plain nnU-Net predicts from, and tells which network is better on the validation cases.

    The folder appears when it is whole, and when a patch has given the same logits with it as with the source.

    Args:
        result_folder: a trained model's folder, or one of its folds'.
        network: as for `networks_meant`; two become two folds, which nnU-Net averages.
        to: a folder that is new or empty; it is returned.
        fold: which one, where several are trained.
        compare: predict the fold's validation cases with each network, on a device as for `find_device`.

    Raises:
        UserError: nothing to export, a folder that holds something, or a model that would not predict the same.
    """
    if os.path.exists(to) and (not isdir(to) or os.listdir(to)):
        raise UserError(f"{to} exists and is not an empty folder: choose another for --to.")
    source = _read_source(result_folder, fold, checkpoint)
    names = networks_meant(network)
    if absent := [name for name in names if name not in source.networks]:
        alone = "trains network A alone" if len(source.networks) == 1 else f"has {', '.join(source.networks)}"
        raise UserError(f"{source.file} has no network {absent[0]}: {source.trained.trainer} {alone}.")
    summaries: dict[str, dict] = {}
    if compare and len(source.networks) > 1:
        summaries = _compare(source, device)
        print(_verdict(summaries, source.trained.fold))

    partial = f"{os.path.abspath(to)}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(source, names, partial, summaries)
        _check_same_logits(source, names, partial)
        if isdir(to):
            os.rmdir(to)
        os.rename(partial, to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return to


def _read_source(result_folder: str, fold: str | None, checkpoint: str) -> _Source:
    folds = {trained.fold: trained for trained in find_folds(result_folder)}
    if fold is None and len(folds) > 1:
        raise UserError(f"{result_folder} has the folds {', '.join(folds)}: choose one with -f.")
    if fold is not None and fold not in folds:
        raise UserError(f"{result_folder} has no trained fold {fold}. It has: {', '.join(folds)}.")
    trained = folds[fold or next(iter(folds))]
    (name,) = choose_checkpoints(trained, [checkpoint])
    file = join(trained.folder, name)
    content = load_checkpoint(file)
    networks = {"A": content["network_weights"]}  # of nnU-Net's own trainers
    if "ssl_state" in content:
        networks = find_trainer_class(content["ssl_state"]["trainer"]).saved_networks(content)
    return _Source(trained, file, content, networks)


def _write(source: _Source, names: Sequence[str], folder: str, summaries: Mapping[str, dict]) -> None:
    content = {key: source.checkpoint[key] for key in _CHECKPOINT_KEYS}
    picture = join(source.trained.folder, "progress.png")
    os.makedirs(folder)
    for file in filter(isfile, (join(dirname(source.trained.folder), name) for name in _MODEL_FILES)):
        shutil.copy(file, folder)
    for number, name in enumerate(names):
        target = join(folder, f"fold_{number}")
        os.mkdir(target)
        torch.save({"network_weights": source.networks[name], **content}, join(target, "checkpoint_final.pth"))
        if isfile(picture):  # nnU-Net's export to a zip insists on it
            shutil.copy(picture, target)
        if name in summaries:
            os.mkdir(join(target, "validation"))
            save_summary_json(summaries[name], join(target, "validation", "summary.json"))


def _predictor(file: str, folds: Sequence[int | str], device: torch.device, **options) -> nnUNetPredictor:
    """Of the model with the checkpoint at `file` in one of its folds."""
    on_device = device.type == "cuda"
    predictor = nnUNetPredictor(device=device, perform_everything_on_device=on_device, allow_tqdm=False, **options)
    predictor.initialize_from_trained_model_folder(dirname(dirname(file)), folds, basename(file))
    return predictor


def _check_same_logits(source: _Source, names: Sequence[str], folder: str) -> None:
    """Both models on one patch of noise, on the CPU, where the same numbers give the same result."""
    cpu = torch.device("cpu")
    before = _predictor(source.file, (source.trained.fold,), cpu, use_mirroring=False)
    before.list_of_parameters = [source.networks[name] for name in names]
    exported = join(folder, "fold_0", "checkpoint_final.pth")
    after = _predictor(exported, range(len(names)), cpu, use_mirroring=False)
    manager = before.configuration_manager
    channels = determine_num_input_channels(before.plans_manager, manager, before.dataset_json)
    size = (1, *manager.patch_size)[-3:]  # a slice has one voxel in depth
    patch = torch.randn((channels, *size), generator=torch.Generator().manual_seed(0))
    same = torch.equal(*(p.predict_logits_from_preprocessed_data(patch.clone()) for p in (before, after)))
    if not same or before.allowed_mirroring_axes != after.allowed_mirroring_axes:
        raise UserError(f"The exported model does not predict what {source.file} predicts: nothing is written.")


def _compare(source: _Source, device: str | None) -> dict[str, dict]:
    predictor = _predictor(source.file, (source.trained.fold,), find_device(device))
    try:
        folders, cases = comparison.preprocessed_validation_cases(predictor, source.trained.fold)
    except UserError as error:
        raise UserError(f"{error} So the networks cannot be compared here: give --no-compare.") from error
    return comparison.compare_networks(predictor, source.networks, folders, cases)


def _verdict(summaries: Mapping[str, dict], fold: str) -> str:
    dice = {name: summary["foreground_mean"]["Dice"] for name, summary in summaries.items()}
    values = ", ".join(f"{name} {value:.4f}" for name, value in dice.items())
    number = len(summaries[comparison.AVERAGED]["metric_per_case"])
    del dice[comparison.AVERAGED]
    better = max(dice, key=dice.get) if len(set(dice.values())) > 1 else "neither"
    return (
        f"Mean Dice on the {number} validation cases of fold {fold}: {values}. "
        f"The better of {' and '.join(dice)}: {better}."
    )
