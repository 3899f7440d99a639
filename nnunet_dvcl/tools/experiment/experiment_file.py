"""The experiment file: what is compared with what, on which cases, with which seeds; read and checked as a whole."""

# ruff: noqa: RUF009 - each call makes a field of its own

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from nnunet_dvcl.errors import UserError

Check = Callable[[Any, str], Any]
"""Takes a value of the file and where it stands; returns it as the dataclasses hold it, or raises a `UserError`."""

IMAGES_TS = "imagesTs"


def _must(where: str, value: Any, expected: str) -> UserError:
    return UserError(f"{where} is {value!r}, expected {expected}.")


def _kind(kind: type | tuple[type, ...], expected: str, is_allowed: Callable[[Any], bool] = lambda _: True) -> Check:
    def check(value: Any, where: str) -> Any:
        is_flag = isinstance(value, bool)  # True is an int to Python
        if not isinstance(value, kind) or is_flag != (kind is bool) or not is_allowed(value):
            raise _must(where, value, expected)
        return value

    return check


def _whole(least: int) -> Check:
    return _kind(int, f"a whole number of at least {least}", lambda value: value >= least)


_text = _kind(str, "text")
_flag = _kind(bool, "true or false")
_positive = _kind((int, float), "a number above 0", lambda value: 0 < value < math.inf)
_share = _kind((int, float), "a number above 0, below 1", lambda value: 0 < value < 1)

_probability = _kind((int, float), "a number of at least 0.5, below 1", lambda value: 0.5 <= value < 1)


def _name(value: Any, where: str) -> str:
    """nnU-Net separates the parts of its folder names by two underscores."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value) or "__" in value:
        raise _must(where, value, "a name of letters, digits, '_', '-', '.', without '__'")
    return value


def _list_of(check: Check) -> Check:
    """A tuple of at least one value, all different."""

    def check_list(value: Any, where: str) -> tuple:
        values = value if isinstance(value, list) else [value]
        if not values:
            raise _must(where, value, "at least one entry")
        checked = tuple(check(entry, f"{where}[{index}]") for index, entry in enumerate(values))
        if doubled := [entry for index, entry in enumerate(checked) if entry in checked[:index]]:
            raise UserError(f"{where} has {doubled[0]} twice.")
        return checked

    return check_list


def _mapping(check: Check, key: Check = _text) -> Check:
    def check_mapping(value: Any, where: str) -> dict:
        if not isinstance(value, dict):
            raise _must(where, value, "a mapping, 'key: value' in each line")
        return {
            key(name, f"the key {name!r} of {where}"): check(entry, f"{where}.{name}") for name, entry in value.items()
        }

    return check_mapping


def _section(read: Callable[[dict, str], Any]) -> Check:
    return lambda value, where: read(_mapping(lambda entry, _: entry)(value, where), where)


def _entry(check: Check, default: Any = MISSING, key: str | None = None) -> Any:
    """A field of a dataclass that is read from the file; `key`: its name there, where Python has taken the word."""
    return field(default=default, metadata={"check": check, "key": key})


def _read(kind: type, values: dict, where: str, **given: Any) -> Any:
    """An instance of the dataclass `kind` from a mapping of the file."""
    known = {option.metadata["key"] or option.name: option for option in fields(kind) if "check" in option.metadata}
    prefix = f"{where}." if where else ""
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {prefix}{close[0]}?" if close else ""
            raise UserError(f"Unknown key {prefix}{name}.{hint} Known keys here: {', '.join(known)}.")
    if missing := [name for name, option in known.items() if option.default is MISSING and name not in values]:
        raise UserError(f"The key {prefix}{missing[0]} is missing.")
    checked = {known[name].name: known[name].metadata["check"](value, prefix + name) for name, value in values.items()}
    return kind(**checked, **given)


# ---------------------------------------------------------------- the parts of the file


@dataclass(frozen=True)
class Amount:
    """How many training cases of a fold keep their label: a share or a count, or what an existing split says."""

    name: str  # in names of runs
    title: str  # in tables
    share: float | None = None
    count: int | None = None
    folds: tuple[int, ...] = ()  # of an existing splits_final.json


@dataclass(frozen=True)
class SplitOptions:
    """Which cases train with and without their label, validate and test; see `nnunet_dvcl.tools.split.draw`."""

    labeled: tuple[Amount, ...] = ()
    keep: bool = False  # use the splits_final.json that is there
    test: float | str = 0.0  # share of all cases, or "imagesTs"
    num_folds: int = 5
    use: tuple[int, ...] = (0,)
    unlabeled: int | None = None
    seed: int = 0
    group_by: str | None = None
    stratify: bool = False


def _amount(value: Any, where: str) -> Amount:
    expected = "a share such as 10%, or a number of cases such as 10"
    percent = re.fullmatch(r"([0-9.]+) *%", value) if isinstance(value, str) else None
    if percent:
        try:
            share = float(percent[1]) / 100
        except ValueError:
            raise _must(where, value, expected) from None
        if 0 < share <= 1:
            return Amount(f"{percent[1]}pct", f"{percent[1]} %", share=share)
    elif isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return Amount(f"{value}cases", f"{value} case{'s' * (value > 1)}", count=value)
    raise _must(where, value, expected)


def _kept_amounts(value: Any, where: str) -> tuple[Amount, ...]:
    folds = _mapping(_list_of(_whole(0)), _name)(value, where)
    if not folds:
        raise _must(where, value, "at least one 'name: folds'")
    return tuple(Amount(name, name, folds=numbers) for name, numbers in folds.items())


def _test(value: Any, where: str) -> float | str:
    return value if value in (IMAGES_TS, 0) else _share(value, where)


@dataclass(frozen=True)
class _NewSplits:
    """The keys of `splits` for a new draw."""

    labeled: tuple[Amount, ...] = _entry(_list_of(_amount))
    test: float | str = _entry(_test, 0.0)
    folds: int = _entry(_whole(2), 5)
    use: tuple[int, ...] = _entry(_list_of(_whole(0)), (0,))
    unlabeled: int | None = _entry(_whole(0), None)
    seed: int = _entry(_whole(0), 0)
    group_by: str | None = _entry(_text, None)
    stratify: bool = _entry(_flag, False)


@dataclass(frozen=True)
class _KeptSplits:
    """The keys of `splits` for a file that is there."""

    keep: tuple[Amount, ...] = _entry(_kept_amounts)
    test: float | str = _entry(lambda value, where: _kept_test(value, where), 0.0)


def _kept_test(value: Any, where: str) -> str | float:
    if value not in (IMAGES_TS, 0):
        raise _must(where, value, f"{IMAGES_TS} or nothing beside splits.keep")
    return value


def _splits(values: dict, where: str) -> SplitOptions:
    if "keep" in values:
        kept = _read(_KeptSplits, values, where)
        return SplitOptions(kept.keep, keep=True, test=kept.test)
    new = _read(_NewSplits, values, where)
    if outside := [number for number in new.use if number >= new.folds]:
        raise UserError(f"{where}.use has {outside[0]}, but there are only the folds 0 to {new.folds - 1}.")
    options = {option.name: getattr(new, option.name) for option in fields(new) if option.name != "folds"}
    return SplitOptions(**options, num_folds=new.folds)


Values = tuple[tuple[str, str], ...]
"""Assignments as for ``nnunet_dvcl configure``: key, and value as JSON, which unlike a list is hashable."""


def _values(value: Any, where: str) -> Values:
    values = _mapping(lambda entry, _: entry)(value, where)
    if "ssl.seed" in values:
        raise UserError(f"{where} has ssl.seed: name the seeds under the key seeds.")
    try:
        return tuple((key, json.dumps(entry)) for key, entry in values.items())
    except TypeError as error:  # a date, for instance
        raise UserError(f"{where} has a value that JSON cannot hold: {error}.") from error


@dataclass(frozen=True)
class Configuration:
    """A configuration of the plans, with other values where `values` says so."""

    name: str
    base: str | None = _entry(_name, None, key="from")  # None: that of its own name
    values: Values = _entry(_values, (), key="set")


def _configurations(value: Any, where: str) -> tuple[Configuration, ...]:
    if not isinstance(value, dict):
        return tuple(Configuration(name) for name in _list_of(_name)(value, where))
    sections = _mapping(lambda entry, _: entry or {}, _name)(value, where)
    if not sections:
        raise _must(where, value, "at least one configuration")
    read = [
        _section(lambda v, w, name=name: _read(Configuration, v, w, name=name))(section, f"{where}.{name}")
        for name, section in sections.items()
    ]
    for configuration in read:
        if configuration.values and configuration.base is None:
            raise UserError(f"{where}.{configuration.name} has other values: its key from has to name a configuration.")
    return tuple(read)


@dataclass(frozen=True)
class SelfTraining:
    """Offline self-training: what `nnunet_dvcl selftrain` is told beside the trainer."""

    rounds: int = _entry(_whole(1), 1)
    ignore_uncertain: float | None = _entry(_probability, None)


@dataclass(frozen=True)
class Row:
    """One line of the tables: a trainer, maybe with values of its own."""

    trainer: str
    name: str  # in names of runs
    title: str  # in tables
    values: Values = ()
    labeled: tuple[str, ...] | None = None  # names of amounts; None: all
    selftrain: SelfTraining | None = None


def _amount_name(value: Any, where: str) -> str:
    """As `_amount` or `_kept_amounts` name it."""
    return value if isinstance(value, str) and "%" not in value else _amount(value, where).name


@dataclass(frozen=True)
class _RowEntry:
    """The keys of an entry of `trainers`."""

    trainer: str = _entry(_name)
    name: str | None = _entry(_name, None)
    title: str | None = _entry(_text, None)
    values: Values = _entry(_values, (), key="set")
    labeled: tuple[str, ...] | None = _entry(_list_of(_amount_name), None)
    selftrain: SelfTraining | None = _entry(_section(lambda v, w: _read(SelfTraining, v, w)), None)


def _row(value: Any, where: str) -> Row:
    if isinstance(value, str):
        trainer = _name(value, where)
        return Row(trainer, trainer, trainer)
    entry = _section(lambda v, w: _read(_RowEntry, v, w))(value, where)
    if entry.name is None and (entry.values or entry.selftrain):
        raise UserError(f"{where} has values of its own or selftrain: give it a name of its own.")
    name = entry.name or entry.trainer
    return Row(entry.trainer, name, entry.title or name, entry.values, entry.labeled, entry.selftrain)


@dataclass(frozen=True)
class ReportOptions:
    """What the tables compare."""

    baseline: str | None = _entry(_text, None)  # name of a row
    tolerance: float = _entry(_positive, 1.0, key="tolerance_mm")  # of the normalized surface distance


def _device(value: Any, where: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"cpu|mps|cuda(:[0-9]+)?", value):
        raise _must(where, value, "cpu, mps, cuda, or a GPU by its number such as cuda:0")
    return value


def _devices(value: Any, where: str) -> tuple[str, ...]:
    """A device that is named twice does two runs at once."""
    values = value if isinstance(value, list) else [value]
    if not values:
        raise _must(where, value, "at least one entry")
    return tuple(_device(entry, f"{where}[{index}]") for index, entry in enumerate(values))


def check_devices(names: list[str]) -> tuple[str, ...]:
    """Devices of the command line, where there are any; raises `UserError` as for those of the file."""
    return _devices(names, "--devices") if names else ()


def _dataset(value: Any, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1000:
        return str(value)
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,3}|Dataset[0-9]{3}_\S+", value):
        raise _must(where, value, "a data set's number or name, as nnU-Net's -d")
    return value


@dataclass(frozen=True)
class Experiment:
    """A whole experiment file.

    Attributes:
        file: where it was read from.
        name: names the folder of its logs and tables; the file's name without its ending where none is given.
        environment: variables for nnU-Net's commands.
        threads: of a training on the CPU.
    """

    file: Path
    dataset: str = _entry(_dataset)
    configurations: tuple[Configuration, ...] = _entry(_configurations)
    splits: SplitOptions = _entry(_section(_splits))
    rows: tuple[Row, ...] = _entry(_list_of(_row), key="trainers")
    seeds: tuple[int, ...] = _entry(_list_of(_whole(0)), (0,))
    devices: tuple[str, ...] = _entry(_devices, ("cuda:0",))
    threads: int = _entry(_whole(1), 1)
    plans: str = _entry(_name, "nnUNetPlans")
    name: str = _entry(_name, "")
    environment: dict[str, str] = _entry(_mapping(lambda value, _: str(value)), None)
    report: ReportOptions = _entry(_section(lambda v, w: _read(ReportOptions, v, w)), ReportOptions())


def read_experiment(file: str | Path) -> Experiment:
    """Reads an experiment file.

    Raises:
        UserError: no such file, no YAML, an unknown key (with a suggestion), a value that cannot be; names the key.
    """
    file = Path(file)
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} must hold 'key: value' lines, such as dataset: 501.")
    try:
        values = {"name": file.stem, "environment": {}, **values}
        experiment = _read(Experiment, values, "", file=file.absolute())
        _check_rows(experiment)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    return experiment


def _check_rows(experiment: Experiment) -> None:
    """What one key says of another."""
    names = [row.name for row in experiment.rows]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"Two entries of trainers are called {doubled[0]}: give one of them another name.")
    amounts = [amount.name for amount in experiment.splits.labeled]
    for row in experiment.rows:
        for name in row.labeled or ():
            if name not in amounts:
                raise UserError(f"The trainer {row.name} has labeled: {name}, but splits has {', '.join(amounts)}.")
    baseline = experiment.report.baseline
    if baseline is not None and baseline not in names:
        raise UserError(f"report.baseline is {baseline}, expected one of the trainers: {', '.join(names)}.")
