"""Which cases of a fold are unlabeled: the key ``"unlabeled"`` of ``splits_final.json``, and what may not overlap."""

import json
from collections.abc import Collection
from os.path import isfile
from pathlib import Path

from nnunet_dvcl.data.messages import bullet_list
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.options import closest

KEY = "unlabeled"


def withheld_cases(splits_file: str, fold: int | str, labeled: Collection[str]) -> list[str]:
    """The cases, of all that are preprocessed with labels, whose labels a fold of ``splits_final.json`` withholds.

    Sorted. Empty without the file or the key, for fold "all", and for a fold that the file does not have (nnU-Net then
    draws a random split of all cases).

    Raises:
        UserError: the fold is malformed, a case has two roles in it, or a case does not exist.
    """
    split = _find_split(splits_file, fold, labeled)
    return [] if split is None else sorted(set(split.get(KEY, [])))


def validation_cases(splits_file: str, fold: int | str, labeled: Collection[str]) -> list[str]:
    """The cases that fold ``fold`` validates on, sorted; for fold "all", as in nnU-Net, all labeled cases.

    Raises:
        UserError: the file does not list the fold's validation cases, or as `withheld_cases`.
    """
    if fold == "all":
        return sorted(labeled)
    split = _find_split(splits_file, fold, labeled)
    if split is None:
        raise UserError(f"{splits_file} has no fold {fold}, so its validation cases are not known: name some cases.")
    return sorted(split["val"])


def folds_that_validate(splits_file: str, case: str) -> list[int]:
    """The folds of ``splits_final.json`` that have the case in "val"."""
    splits = enumerate(_read(splits_file))
    return [fold for fold, split in splits if not _shape_problems(split) and case in split["val"]]


def check_scans_have_no_label(scans: Collection[str], labeled: Collection[str], images_folder: str) -> None:
    """``UserError`` when a scan of ``imagesTr_unlabeled`` has the identifier of a labeled case."""
    if both := sorted(set(scans) & set(labeled)):
        raise UserError(
            f"{len(both)} case(s) are labeled and in {images_folder} at once:\n{bullet_list(both)}\n"
            f"Remove them from that folder (or rename them, if they are other scans). To train on a labeled case "
            f'without its label, list it under "{KEY}" in splits_final.json instead.'
        )


def _read(splits_file: str) -> list:
    """Empty where there is no file."""
    if not isfile(splits_file):
        return []
    try:
        splits = json.loads(Path(splits_file).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{splits_file} is not valid JSON: {error}") from error
    if not isinstance(splits, list):
        raise UserError(f"{splits_file} must hold a list with one entry a fold, not {type(splits).__name__}.")
    return splits


def _shape_problems(split: object) -> list[str]:
    if not isinstance(split, dict):
        return [f'expected {{"train": [...], "val": [...], "{KEY}": [...]}}, found {type(split).__name__}']
    problems = [f'"{key}" is missing' for key in ("train", "val") if key not in split]
    for key in split:
        if key in ("train", "val", KEY):
            if not isinstance(split[key], list) or not all(isinstance(case, str) for case in split[key]):
                problems.append(f'"{key}" must be a list of case identifiers (strings)')
            elif key != KEY and not split[key]:
                problems.append(f'"{key}" is empty')
        elif closest(key.lower(), [KEY]):
            problems.append(f'"{key}" is not a key; did you mean "{KEY}"?')
    return problems


def _find_split(splits_file: str, fold: int | str, labeled: Collection[str]) -> dict | None:
    """None for fold "all" and for one that the file does not have; raises as `withheld_cases`."""
    if fold == "all" or int(fold) >= len(splits := _read(splits_file)):
        return None
    split = splits[int(fold)]
    if problems := _shape_problems(split) or _case_problems(split, labeled):
        raise UserError(f"Fold {fold} of {splits_file} cannot be used:\n{bullet_list(problems)}")
    return split


def _case_problems(split: dict, labeled: Collection[str]) -> list[str]:
    roles = {role: set(split.get(role, [])) for role in ("train", "val", KEY)}
    in_two = [
        f'{case}: is in "{KEY}" and in "{role}"; remove it from one of them'
        for role in ("train", "val")
        for case in sorted(roles[KEY] & roles[role])
    ]
    return in_two + [
        f'{case}: in "{role}", but not among the {len(labeled)} preprocessed labeled cases; remove it, mend its name, '
        f"or run nnUNetv2_preprocess if it is new (scans of imagesTr_unlabeled need not be listed)"
        for role, cases in roles.items()
        for case in sorted(cases - set(labeled))
    ]
