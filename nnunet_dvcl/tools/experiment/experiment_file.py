"""The experiment file: what is compared with what, on which cases, with which seeds; read and checked as a whole."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, TypeAdapter

from nnunet_dvcl import options
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.options import Count, CountFrom0, Flag, Options, Positive, Text, different, expected, option, refused

IMAGES_TS = "imagesTs"

_Part = Annotated[float, Field(strict=True, ge=0, lt=1)]
# nnU-Net separates the parts of its folder names by two underscores
_NAME = "^[A-Za-z0-9](_?[A-Za-z0-9.-])*_?$"
Name = option(str, "a name of letters, digits, '_', '-', '.', without '__'", pattern=_NAME)
Device = option(str, "cpu, mps, cuda, or a GPU by its number such as cuda:0", pattern="^(cpu|mps|cuda(:[0-9]+)?)$")
Devices = options.one_or_more(Device)  # one that is named twice does two runs at once


def _dataset(value: Any) -> str:
    name = str(value) if type(value) is int and value > 0 else value
    if not isinstance(name, str) or not re.fullmatch(r"[0-9]{1,3}|Dataset[0-9]{3}_\S+", name):
        raise expected("a data set's number or name, as nnU-Net's -d")
    return name


@dataclass(frozen=True)
class Amount:
    """How many training cases of a fold keep their label: a share or a count, or what an existing split says."""

    name: str  # in names of runs
    title: str  # in tables
    share: float | None = None
    count: int | None = None
    folds: tuple[int, ...] = ()  # of an existing splits_final.json


def _amount(value: Any) -> Amount:
    if type(value) is int and value >= 1:
        return Amount(f"{value}cases", f"{value} case{'s' * (value > 1)}", count=value)
    percent = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+) *%", value) if isinstance(value, str) else None
    if percent is None or not 0 < float(percent[1]) <= 100:
        raise expected("a share such as 10%, or a number of cases such as 10")
    return Amount(f"{percent[1]}pct", f"{percent[1]} %", share=float(percent[1]) / 100)


def _amount_name(value: Any) -> str:
    return value if isinstance(value, str) and "%" not in value else _amount(value).name


def _kept_amounts(folds: dict[str, tuple[int, ...]]) -> tuple[Amount, ...]:
    if not folds:
        raise expected("at least one 'name: folds'")
    return tuple(Amount(name, name, folds=numbers) for name, numbers in folds.items())


class NewSplits(Options):
    """Which cases train with and without their label, validate and test; see `nnunet_dvcl.tools.split.draw`."""

    labeled: different(Annotated[Amount, PlainValidator(_amount)])
    test: Annotated[Literal[IMAGES_TS] | _Part, options.Expected("a number above 0, below 1")] = 0.0
    num_folds: option(int, "a whole number of at least 2", ge=2) = Field(5, alias="folds")
    use: different(CountFrom0) = (0,)
    unlabeled: CountFrom0 = None  # all
    seed: CountFrom0 = 0
    group_by: Text = None
    stratify: Flag = False

    @pydantic.field_validator("use")
    @classmethod
    def _check_use(cls, use: tuple[int, ...], info: pydantic.ValidationInfo) -> tuple[int, ...]:
        num_folds = info.data.get("num_folds", math.inf)
        if outside := [fold for fold in use if fold >= num_folds]:
            raise refused(f"has {outside[0]}, but there are only the folds 0 to {num_folds - 1}.")
        return use


class KeptSplits(Options):
    """Those of the ``splits_final.json`` that is there."""

    labeled: Annotated[dict[Name, different(CountFrom0)], AfterValidator(_kept_amounts)] = Field(alias="keep")
    test: Annotated[Literal[IMAGES_TS, 0], options.Expected(f"{IMAGES_TS} or nothing beside splits.keep")] = 0


def _splits(value: Any) -> NewSplits | KeptSplits:
    kept = isinstance(value, dict) and "keep" in value
    return (KeptSplits if kept else NewSplits).model_validate(value)


def _as_json(values: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    if "ssl.seed" in values:
        raise refused("has ssl.seed: name the seeds under the key seeds.")
    try:
        return tuple((key, json.dumps(value)) for key, value in values.items())
    except TypeError as error:  # a date, for instance
        raise refused(f"has a value that JSON cannot hold: {error}.") from error


Values = Annotated[dict[Text, Any], AfterValidator(_as_json)]
"""Assignments as for ``nnunet_dvcl configure``: key, and value as JSON, which unlike a list is hashable."""


class Configuration(Options):
    """A configuration of the plans, with other values than `base` where `values` says so."""

    name: str = Field("", exclude=True)
    base: Name = Field(None, alias="from")
    values: Values = Field((), alias="set")

    @pydantic.model_validator(mode="after")
    def _check_base(self) -> Configuration:
        if self.values and self.base is None:
            raise refused("has other values: its key from has to name a configuration.")
        return self


def _configurations(value: Any) -> tuple[Configuration, ...]:
    if not isinstance(value, dict):
        value = dict.fromkeys(TypeAdapter(different(Name)).validate_python(value))
    if not value:
        raise expected("at least one configuration")
    entries = {name: entry or {} for name, entry in value.items()}
    read = TypeAdapter(dict[Name, Configuration]).validate_python(entries)
    return tuple(entry.model_copy(update={"name": name, "base": entry.base or name}) for name, entry in read.items())


class SelfTraining(Options):
    """Offline self-training: what `nnunet_dvcl selftrain` is told beside the trainer."""

    rounds: Count = 1
    ignore_uncertain: option(float, "a number of at least 0.5, below 1", ge=0.5, lt=1) = None


class Row(Options):
    """One line of the tables: a trainer, maybe with values of its own."""

    trainer: Name
    name: Name = None  # in names of runs; the trainer's where none is given
    title: Text = None  # in tables; the name where none is given
    values: Values = Field((), alias="set")
    labeled: different(Annotated[str, PlainValidator(_amount_name)]) = None  # names of amounts; None: all
    selftrain: SelfTraining = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _take_name(cls, entry: Any) -> Any:
        return {"trainer": TypeAdapter(Name).validate_python(entry)} if isinstance(entry, str) else entry

    @pydantic.model_validator(mode="after")
    def _complete(self) -> Row:
        if self.name is None and (self.values or self.selftrain):
            raise refused("has values of its own or selftrain: give it a name of its own.")
        name = self.name or self.trainer
        return self.model_copy(update={"name": name, "title": self.title or name})


class ReportOptions(Options):
    """What the tables compare."""

    baseline: Text = None  # name of a row
    group_by: Text = None  # finds a case's patient; that of the splits where none is given
    tolerance: Positive = Field(1.0, alias="tolerance_mm")  # of the normalized surface distance


class Experiment(Options):
    """A whole experiment file."""

    dataset: Annotated[str, PlainValidator(_dataset)]
    configurations: Annotated[tuple[Configuration, ...], PlainValidator(_configurations)]
    splits: Annotated[NewSplits | KeptSplits, PlainValidator(_splits)]
    rows: different(Row) = Field(alias="trainers")
    seeds: different(CountFrom0) = (0,)
    devices: Devices = ("cuda:0",)
    threads: Count = 1  # of a training on the CPU
    plans: Name = "nnUNetPlans"
    name: Name  # of the folder of its logs and tables
    environment: dict[Text, Annotated[str, BeforeValidator(str)]] = Field({})  # of nnU-Net's commands
    report: ReportOptions = ReportOptions()
    file: Path = Field(Path(), exclude=True)  # that it was read from

    @property
    def patient_pattern(self) -> str | None:
        """The regular expression that finds a case's patient, or None: each case is the only one of its patient."""
        return self.report.group_by or getattr(self.splits, "group_by", None)

    @pydantic.model_validator(mode="after")
    def _check_names(self) -> Experiment:
        """What one key says of another."""
        names = [row.name for row in self.rows]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"Two entries of trainers are called {doubled[0]}: give one of them another name.")
        amounts = [amount.name for amount in self.splits.labeled]
        for row in self.rows:
            if missing := [name for name in row.labeled or () if name not in amounts]:
                raise UserError(
                    f"The trainer {row.name} has labeled: {missing[0]}, but splits has {', '.join(amounts)}."
                )
        baseline = self.report.baseline
        if baseline not in (None, *names):
            raise UserError(f"report.baseline is {baseline}, expected one of the trainers: {', '.join(names)}.")
        return self


def read_experiment(file: str | Path) -> Experiment:
    """Reads an experiment file; its name without the ending is the experiment's, where it gives none.

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
        experiment = Experiment.read({"name": file.stem, **values})
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    return experiment.model_copy(update={"file": file.absolute()})
