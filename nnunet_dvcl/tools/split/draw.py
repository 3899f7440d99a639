"""Which cases train with their label, train without it, validate, and test: drawn once, the same on any machine."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from nnunet_dvcl.data.messages import bullet_list
from nnunet_dvcl.errors import UserError

Fold = dict[str, list[str]]


class Splits(NamedTuple):
    """What a data set is divided into; all lists are sorted."""

    folds: list[Fold]  # "train", "val", "unlabeled", as in splits_final.json
    test: list[str]  # in no list of any fold


class _Group(NamedTuple):
    """The cases of one patient, which stay together."""

    name: str
    cases: list[str]
    counts: Counter[str]  # class -> how many of the cases have it


def make_splits(
    case_classes: Mapping[str, Collection[str]],
    expected_classes: Collection[str],
    *,
    labeled: float | None = None,
    count: int | None = None,
    unlabeled: int | None = None,
    test: float = 0.0,
    num_folds: int = 5,
    seed: int = 0,
    groups: Mapping[str, str] | None = None,
    stratify: bool = False,
) -> Splits:
    """Divides cases into folds, and each fold's training cases into labeled and unlabeled ones.

    Everything follows from one kind of draw: groups sorted by a hash of the seed and their name, which is the same with
    any version of Python. Test cases and folds depend neither on `labeled`, `count` nor `unlabeled`, and labeled and
    unlabeled cases are the first ones of one order a fold: a smaller number gives a part of what a larger one gives.

    Args:
        case_classes: identifier of each labeled case -> names of the classes that occur in it.
        expected_classes: those that must occur among the labeled cases of every fold.
        labeled: share of a fold's training cases that keep their label, in (0, 1]; or
        count: their number. Exactly one of the two is given.
        unlabeled: number of a fold's other training cases that train without; the rest is left out. None: all.
        test: share of all cases that is kept for testing, in [0, 1).
        num_folds: at least 2.
        seed: another seed, another draw.
        groups: case -> group, for instance its patient, or None. A group is never divided between lists, so that a
            number is one that is not exceeded.
        stratify: let folds, test cases and labeled cases have each class about equally often.

    Raises:
        UserError: a value out of its range, too few groups, or a class that does not occur where it must; names it.
    """
    _check_arguments(labeled, count, unlabeled, test, num_folds)
    members: dict[str, list[str]] = {}
    for case in case_classes:
        members.setdefault((groups or {}).get(case, case), []).append(case)
    everything = [
        _Group(name, cases, Counter(c for case in cases for c in set(case_classes[case])))
        for name, cases in members.items()
    ]
    _check_occurrence(everything, expected_classes)
    order = _order(everything, seed, "test", stratify)
    held_out = _first(order, round(test * len(case_classes)))
    if test and not held_out:
        raise UserError(
            f"{test:g} of {len(case_classes)} cases is no whole group of cases to test on: raise the share."
        )
    development = order[len(held_out) :]
    if len(development) < num_folds:
        raise UserError(
            f"There are {len(development)} groups of cases for {num_folds} folds: lower the number of folds or the "
            "share of test cases."
        )
    parts = _deal(_order(development, seed, "folds"), num_folds, stratify)
    folds = []
    for number, val in enumerate(parts):
        train = [group for part in parts if part is not val for group in part]
        try:
            _check_occurrence(train, expected_classes, "training case")
            order = _order(train, seed, "labeled", stratify, expected_classes)
            wanted = count or max(1, round(labeled * _size(train)))
            train_labeled, train_unlabeled = _divide(order, expected_classes, wanted, unlabeled)
        except UserError as error:
            raise UserError(f"Fold {number}: {error}") from error
        folds.append({"train": _cases(train_labeled), "val": _cases(val), "unlabeled": _cases(train_unlabeled)})
    return Splits(folds, _cases(held_out))


def group_by(cases: Iterable[str], pattern: str) -> dict[str, str]:
    """Case -> what `find_group` finds; ``UserError`` for no regular expression, or a case in which it finds nothing."""
    try:
        groups = {case: find_group(case, pattern) for case in cases}
    except re.error as error:
        raise UserError(f"{pattern!r} is no regular expression: {error}.") from error
    if strays := sorted(case for case, group in groups.items() if group is None):
        raise UserError(f"The regular expression {pattern!r} finds no group in these cases:\n{bullet_list(strays)}")
    return groups


def find_group(case: str, pattern: str) -> str | None:
    """What a regular expression finds in a case's identifier, its parentheses alone where it has some, or None."""
    match = re.search(pattern, case)
    return match and ("/".join(group or "" for group in match.groups()) or match[0])


def _check_arguments(labeled, count, unlabeled, test, num_folds) -> None:
    if (labeled is None) == (count is None):
        raise UserError("Give either the share of labeled cases or their count, not both.")
    for name, value, is_allowed, allowed in (
        ("share of labeled cases", labeled, labeled is None or 0 < labeled <= 1, "above 0, at most 1"),
        ("count of labeled cases", count, count is None or count >= 1, "at least 1"),
        ("count of unlabeled cases", unlabeled, unlabeled is None or unlabeled >= 0, "at least 0"),
        ("share of test cases", test, 0 <= test < 1, "at least 0, below 1"),
        ("number of folds", num_folds, num_folds >= 2, "at least 2"),
    ):
        if not is_allowed:
            raise UserError(f"The {name} is {value}, expected {allowed}.")


def _cases(groups: Iterable[_Group]) -> list[str]:
    return sorted(case for group in groups for case in group.cases)


def _size(groups: Iterable[_Group]) -> int:
    return sum(len(group.cases) for group in groups)


def _check_occurrence(groups: Sequence[_Group], expected: Collection[str], what: str = "case") -> None:
    if missing := _missing(groups, expected):
        raise UserError(
            f"No {what} has {', '.join(missing)}, so no network can learn it. Divide the cases otherwise (another "
            "seed, stratified, fewer test cases), or take it out of dataset.json."
        )


def _missing(groups: Iterable[_Group], expected: Collection[str]) -> list[str]:
    """The expected classes that occur in no case."""
    there = {name for group in groups for name in group.counts}
    return [name for name in expected if name not in there]


def _order(
    groups: Iterable[_Group], seed: int, purpose: str, balance: bool = False, expected: Collection[str] = ()
) -> list[_Group]:
    """As few groups as let every expected class occur, then the others: shuffled, which is by hash, or balanced."""
    shuffled = sorted(groups, key=lambda group: sha256(f"{seed}/{purpose}/{group.name}".encode()).digest())
    cover = _cover(shuffled, expected)
    rest = [group for group in shuffled if group not in cover]
    return cover + (_balanced(rest, cover) if balance else rest)


def _first(order: Sequence[_Group], count: int) -> list[_Group]:
    """The longest beginning of an order that has no more than `count` cases."""
    totals = accumulate(len(group.cases) for group in order)
    return [group for group, total in zip(order, totals, strict=True) if total <= count]


def _cover(order: Sequence[_Group], expected: Collection[str]) -> list[_Group]:
    """Groups in which all classes occur: again and again the first one with the most classes that are missing yet."""
    cover: list[_Group] = []
    while missing := set(_missing(cover, expected)):
        cover.append(max(order, key=lambda group: len(missing & group.counts.keys())))
    return cover


def _balanced(order: Sequence[_Group], before: Sequence[_Group]) -> list[_Group]:
    """The order in which, step by step, the share of cases that have a class is nearest to its share of all cases.

    The distance is the sum over the classes; in whole numbers, to be the same on any machine. Of equals the first.
    """
    groups = [*before, *order]
    names = sorted({name for group in groups for name in group.counts})
    table = np.array([[len(group.cases), *(group.counts[name] for name in names)] for group in groups], dtype=np.int64)
    total, have = table.sum(0), table[: len(before)].sum(0)
    left, chosen = list(range(len(before), len(groups))), []
    while left:
        then = have + table[left]
        distances = np.abs(then[:, 1:] * total[0] - total[1:] * then[:, :1]).sum(1)
        index = left.pop(int(distances.argmin()))
        have = have + table[index]
        chosen.append(groups[index])
    return chosen


def _deal(order: Sequence[_Group], num_folds: int, stratify: bool) -> list[list[_Group]]:
    """Each group goes to the fold with the fewest cases so far.

    Stratified, those with the rarest class come first, and go to the fold that has the fewest cases with it (iterative
    stratification, Sechidis et al., ECML 2011).
    """
    folds: list[list[_Group]] = [[] for _ in range(num_folds)]
    left = list(order)
    while left:
        occurrences = sum((group.counts for group in left), Counter()) if stratify else Counter()
        rarest = min(sorted(occurrences), key=occurrences.get, default=None)
        for group in [group for group in left if rarest is None or rarest in group.counts]:
            min(folds, key=lambda fold: (sum(g.counts[rarest] for g in fold), _size(fold))).append(group)
            left.remove(group)
    return folds


def _divide(
    order: Sequence[_Group], expected: Collection[str], wanted: int, unlabeled: int | None
) -> tuple[list[_Group], list[_Group]]:
    """Labeled and unlabeled groups of a fold's training groups."""
    available = _size(order)
    if wanted > available:
        raise UserError(f"{wanted} labeled cases are wanted, and there are {available} training cases.")
    keep = _first(order, wanted)
    if not keep:
        raise UserError(
            f"{wanted} labeled cases are wanted, and the first group has {len(order[0].cases)}: label as many."
        )
    if missing := _missing(keep, expected):
        needed = _size(_cover(order, expected))
        raise UserError(
            f"{wanted} labeled cases are too few to have {', '.join(missing)} beside the other classes: label at least "
            f"{needed} of the {available} training cases."
        )
    rest = list(order[len(keep) :])
    if unlabeled is not None and unlabeled > _size(rest):
        raise UserError(f"{unlabeled} unlabeled cases are wanted, and {_size(rest)} training cases have no label.")
    return keep, rest if unlabeled is None else _first(rest, unlabeled)
