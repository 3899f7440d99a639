"""``nnunet_dvcl configure``: a configuration of its own in the plans file, for other values than the defaults."""

from __future__ import annotations

import json
import math
import re
from copy import deepcopy
from os.path import dirname, join
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dvcl.cascade.previous_stage import check_previous_stage
from nnunet_dvcl.commands import train_command
from nnunet_dvcl.data.folders import check_configuration, check_name, find_plans_file
from nnunet_dvcl.data.storage import HIDDEN_FOLDER, write_json
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.files import writing
from nnunet_dvcl.lock import locked_where_possible
from nnunet_dvcl.options import did_you_mean
from nnunet_dvcl.trainers.base.config import check_ssl

# nnU-Net's own keys that most configurations do not have
_STAGE_KEYS = ("previous_stage", "next_stage")
# what the preprocessed data depend on: other values need data of their own
_PREPROCESSING_KEYS = ("spacing", "normalization_schemes", "use_mask_for_norm", "preprocessor_name")


def configure(
    dataset_name_or_id: str, configuration: str, name: str, plans_identifier: str, assignments: list[str]
) -> str:
    """Writes the configuration `name`, which inherits from `configuration`, into the plans file; returns its path.

    A derived configuration of that name is replaced.

    Args:
        dataset_name_or_id, configuration, plans_identifier: as nnU-Net's ``-d``, ``-c`` and ``-p``.
        name: the new configuration.
        assignments: ``key=value`` with a JSON value (or plain text); keys: nnU-Net's own keys of the configuration,
            ``previous_stage`` and ``next_stage``, ``architecture.arch_kwargs.<key>``, and ``ssl.<key>``.

    Raises:
        UserError: no such plans or configuration, an unknown key, an impossible value, a folder of preprocessed cases
            that another configuration fills differently, or a previous stage that does not name this configuration as
            its next one.
    """
    if not assignments:
        raise UserError("Nothing to change: give KEY=VALUE, for instance batch_size=2, or a --preset.")
    assigned = dict(map(_parse, assignments))
    plans_file = find_plans_file(dataset_name_or_id, plans_identifier)
    with writing(plans_file), locked_where_possible(join(dirname(plans_file), HIDDEN_FOLDER, "plans.lock")):
        parent, replaced = _write(plans_file, configuration, name, plans_identifier, assigned)
    print(f"{'Replaced' if replaced else 'Wrote'} configuration {name} in {plans_file}: {configuration} with")
    for key, value in assigned.items():
        print(f"  {key}={json.dumps(value)}{_instead_of(key, value, parent)}")
    print(f"Train with: {train_command(dataset_name_or_id, name, 0, 'nnUNetTrainerDVCL', plans_identifier)}")
    return plans_file


def _write(
    plans_file: str, configuration: str, name: str, plans_identifier: str, assigned: dict[str, Any]
) -> tuple[dict, bool]:
    """The parent's values, and whether one was replaced. One writer at a time: each writes the whole file."""
    plans = load_json(plans_file)
    check_configuration(plans_identifier, plans["configurations"], configuration)
    _check_names(plans["configurations"], configuration, name)
    parent = PlansManager(deepcopy(plans)).get_configuration(configuration).configuration
    derived = {"inherits_from": configuration}
    for key, value in assigned.items():
        _assign(derived, parent, key, value)
    _check(derived, {**parent, **derived})

    replaced = name in plans["configurations"]
    plans["configurations"][name] = derived
    manager = PlansManager(deepcopy(plans))
    _check_shared_data(manager, name)
    check_previous_stage(manager, name)
    write_json(plans, plans_file)
    return parent, replaced


def _instead_of(key: str, value: Any, parent: dict) -> str:
    """The parent's other value; nothing where it has none of its own, as for most of ours."""
    for part in key.split("."):
        parent = parent.get(part) if isinstance(parent, dict) else None
    return "" if parent in (None, value) else f"  (there {json.dumps(parent)})"


def _check_names(existing: dict, configuration: str, name: str) -> None:
    # nnU-Net names its results folders TRAINER__PLANS__CONFIGURATION
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or "__" in name:
        raise UserError(f"{name!r} is no name for a configuration: use letters, digits, '_', '-', '.', and no '__'.")
    if name in existing and "inherits_from" not in existing[name]:
        raise UserError(f"{name} is one of nnU-Net's own configurations and is not replaced: choose another --name.")
    ancestor = configuration
    while ancestor is not None:
        if ancestor == name:
            raise UserError(f"{configuration} inherits from {name}: choose another --name.")
        ancestor = existing[ancestor].get("inherits_from")


def _parse(assignment: str) -> tuple[str, Any]:
    key, equals, text = assignment.partition("=")
    if not key or not equals:
        raise UserError(f"{assignment!r} is no assignment: expected key=value, for instance batch_size=2.")
    try:
        return key, json.loads(text)
    except (ValueError, RecursionError):  # also a number of more digits than Python reads
        return key, text


def _assign(derived: dict, parent: dict, key: str, value: Any) -> None:
    """Sets one key; nnU-Net inherits shallowly, so "ssl" and "architecture" are written as a whole."""
    if key.startswith("ssl."):
        derived.setdefault("ssl", deepcopy(parent.get("ssl", {})))[key.removeprefix("ssl.")] = value
    elif key.startswith("architecture.arch_kwargs."):
        architecture = derived.setdefault("architecture", deepcopy(parent["architecture"]))
        option = key.removeprefix("architecture.arch_kwargs.")
        _check_own_key(key, option, architecture["arch_kwargs"], value)
        architecture["arch_kwargs"][option] = value
    elif key in _STAGE_KEYS:
        _check_stage(key, value)
        derived[key] = value
    else:
        own = {k: v for k, v in parent.items() if k not in ("ssl", "architecture", "inherits_from")}
        _check_own_key(key, key, own, value)
        derived[key] = value


def _check_own_key(key: str, option: str, known: dict, value: Any) -> None:
    if option not in known:
        raise UserError(
            f"Unknown key {key}.{did_you_mean(option, known, key.removesuffix(option))}\nKnown keys here: "
            f"{', '.join(known)}; also architecture.arch_kwargs.<key>, {', '.join(_STAGE_KEYS)} and ssl.<key>."
        )
    old = known[option]
    if old is not None and not _is_like(value, old):
        raise UserError(f"{key} is {value!r}, expected the type of its present value {old!r}, numbers above 0.")


def _check_stage(key: str, value: Any) -> None:
    names = value if isinstance(value, list) and value and key == "next_stage" else [value]
    if value is not None and not all(isinstance(name, str) for name in names):
        several = ", a list of names" if key == "next_stage" else ""
        raise UserError(f"{key} is {value!r}, expected the name of a configuration{several} or null.")


def _is_like(value: Any, old: Any) -> bool:
    """Whether `value` has the type of `old`, entries of lists too. Every number of nnU-Net's keys is above 0."""
    if isinstance(old, list) and old:
        return isinstance(value, list) and all(_is_like(entry, old[0]) for entry in value)
    if type(old) in (int, float):
        return (type(value) is int or type(value) is type(old)) and 0 < value < math.inf
    return type(value) is type(old)


def _check(derived: dict, resolved: dict) -> None:
    """Refuses what no network or data loader could be built from."""
    check_ssl(resolved.get("ssl", {}))
    check_name(resolved["data_identifier"], "data_identifier")
    changed = [key for key in derived if _changes_data(key)]
    if changed and "data_identifier" not in derived:
        raise UserError(
            f"{', '.join(changed)} change the preprocessed data: give them a folder of their own with "
            "data_identifier=NAME, then run nnUNetv2_preprocess for this configuration."
        )
    patch_size, kwargs = resolved["patch_size"], resolved["architecture"]["arch_kwargs"]
    _check_stages(kwargs, patch_size)
    if len(patch_size) != len(resolved["spacing"]):
        raise UserError(f"patch_size is {patch_size}, expected {len(resolved['spacing'])} numbers, one an axis.")
    total = [math.prod(axis) for axis in zip(*kwargs["strides"], strict=True)]
    if any(size % stride for size, stride in zip(patch_size, total, strict=True)):
        raise UserError(f"patch_size is {patch_size}, expected multiples of the network's total strides {total}.")


def _changes_data(key: str) -> bool:
    # resampling_fn_probabilities is of the prediction
    return key in _PREPROCESSING_KEYS or key.startswith(("resampling_fn_data", "resampling_fn_seg"))


def _check_shared_data(manager: PlansManager, name: str) -> None:
    """Refuses a folder of preprocessed cases that another configuration fills with other ones."""
    own = manager.get_configuration(name).configuration
    for other in manager.available_configurations:
        values = manager.get_configuration(other).configuration
        differing = [key for key in own if _changes_data(key) and own[key] != values.get(key)]
        if values["data_identifier"] == own["data_identifier"] and differing:
            key = differing[0]
            raise UserError(
                f"{name} and {other} have the same data_identifier, {own['data_identifier']}, and would fill its "
                f"folder differently: {key} is {json.dumps(own[key])} and {json.dumps(values[key])}. Give {name} "
                "another data_identifier."
            )


def _check_stages(kwargs: dict, patch_size: list[int]) -> None:
    stages = kwargs["n_stages"]
    per_stage = ("features_per_stage", "strides", "kernel_sizes", "n_conv_per_stage", "n_blocks_per_stage")
    for option, length in {**dict.fromkeys(per_stage, stages), "n_conv_per_stage_decoder": stages - 1}.items():
        values, key = kwargs.get(option), f"architecture.arch_kwargs.{option}"
        if not isinstance(values, list):
            continue
        if len(values) != length:
            raise UserError(f"{key} has {len(values)} entries, expected {length} for n_stages = {stages}.")
        if any(isinstance(axes, list) and len(axes) != len(patch_size) for axes in values):
            raise UserError(
                f"{key} is {values}, expected one number an axis of patch_size = {patch_size} in each stage."
            )
