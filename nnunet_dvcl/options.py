"""Values that a user writes: classes of them, checked as a whole, with errors that say what was expected.

A class derives from `Options` and names a type of this module, or one made by `option`, for each value::

    class TeacherOptions(Options):
        teacher_decay: Share = 0.99
        num_teachers: option(int, "1 or 2", ge=1, le=2) = 1
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from nnunet_dvcl.errors import UserError

T = TypeVar("T", bound="Options")
MAPPING = "a mapping, 'key: value' in each line"


@dataclass(frozen=True)
class Expected:
    """What a value has to be, in the words of an error's end: "... is 0, expected a whole number of at least 1."."""

    words: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._check, handler(source))

    def _check(self, value: Any, check: core_schema.ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(value)
        except ValidationError as error:
            raise expected(self.words) from error


def expected(words: str) -> PydanticCustomError:
    """What a validator of one's own raises: "... is 0, expected `words`."."""
    return PydanticCustomError("expected", "{words}", {"words": words})


def refused(words: str) -> PydanticCustomError:
    """What a validator of one's own raises instead where the value need not be shown: "trainers[0] `words`"."""
    return PydanticCustomError("refused", "{words}", {"words": words})


def option(kind: Any, words: str, **constraints: Any) -> Any:
    """The type of a value.

    Args:
        kind: what Python calls it; taken strictly, so that true is no number and 2.0 is not whole.
        words: what is expected, for errors.
        constraints: as pydantic's ``Field`` takes them, for instance ``ge=0``.
    """
    return Annotated[kind, Field(strict=True, **constraints), Expected(words)]


def or_null(kind: Any) -> Any:
    """The type, or null."""
    return Annotated[kind | None, Expected(f"{words_of(kind)} or null")]


def choice(*values: str) -> Any:
    """One of a few texts."""
    listed = ", ".join(f'"{value}"' for value in values)
    return Annotated[Literal[values], Expected(f"one of {listed}")]


def one_or_more(kind: Any) -> Any:
    """A tuple of values: a list with at least one, or one alone."""
    return Annotated[tuple[kind, ...], BeforeValidator(_as_list)]


def different(kind: Any) -> Any:
    """As `one_or_more`, none of them twice."""
    return Annotated[one_or_more(kind), AfterValidator(_without_doubles)]


def _as_list(value: Any) -> list:
    if value == []:
        raise expected("at least one entry")
    return value if isinstance(value, list) else [value]


def _without_doubles(values: tuple) -> tuple:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise refused(f"has {value} twice.")
    return values


Text = option(str, "text")
Flag = option(bool, "true or false")
Count = option(int, "a whole number of at least 1", ge=1)
CountFrom0 = option(int, "a whole number of at least 0", ge=0)
Number = option(float, "a number", allow_inf_nan=False)
Positive = option(float, "a number above 0", gt=0, allow_inf_nan=False)
Weight = option(float, "a number of at least 0", ge=0, allow_inf_nan=False)
Share = option(float, "a number in [0, 1]", ge=0, le=1)


class Options(BaseModel):
    """Checked values that never change; a field with ``exclude=True`` is none of them."""

    model_config = ConfigDict(frozen=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        # pydantic takes every inherited field from the first base, even where a later one has overridden it
        owners = {
            key: next(c for c in cls.__mro__ if key in vars(c).get("__annotations__", {})) for key in cls.model_fields
        }
        fields = {key: owner.model_fields[key] for key, owner in owners.items()}
        if any(cls.model_fields[key].default != field.default for key, field in fields.items()):
            cls.__pydantic_fields__.update(fields)
            cls.model_rebuild(force=True)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items() if not field.exclude]
        for key in values if isinstance(values, dict) else ():
            if key not in known:
                raise PydanticCustomError("unknown", "unknown key", {"key": key, "known": known})
        return values

    @classmethod
    def read(cls: type[T], values: Any, where: str = "") -> T:
        """An instance of what was parsed from JSON or YAML; as the function `read`."""
        return read(cls, values, where)


def read(kind: Any, values: Any, where: str = "") -> Any:
    """What was parsed from JSON or YAML, as the type has it.

    Args:
        kind: a class of `Options`, or one of this module's types.
        values: what was parsed; for `Options` a mapping.
        where: its place, for errors: "ssl" makes "ssl.num_epochs is 0, expected ...".

    Raises:
        UserError: not a mapping, an unknown key (with a suggestion), a missing one, or a value that is not what was
            expected; names the first of them.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise user_error(error, where) from error


def user_error(error: ValidationError, where: str = "") -> UserError:
    """The first problem that pydantic found in values, in our words; see `read`."""
    return UserError(_problem(error.errors()[0], where))


def _problem(error: ErrorDetails, where: str) -> str:
    place, path = error["loc"], _path(where, error["loc"])
    words = MAPPING if error["type"] in ("model_type", "dict_type") else error["msg"]
    if error["type"] == "unknown":
        key, known = error["ctx"]["key"], error["ctx"]["known"]
        prefix = f"{path}." if path else ""
        return f"Unknown key {prefix}{key}.{did_you_mean(key, known, prefix)}\nKnown keys here: {', '.join(known)}."
    if error["type"] == "missing":
        return f"The key {path} is missing."
    if error["type"] == "refused":
        return f"{path} {words}"
    if place and place[-1] == "[key]":  # pydantic's mark of a mapping's key
        path = f"the key {error['input']!r} of {_path(where, place[:-2])}"
    return f"{path} is {error['input']!r}, expected {words}."


def _path(where: str, place: Iterable[int | str]) -> str:
    """ "splits.labeled[0]"."""
    for part in place:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else part
    return where


def words_of(kind: Any) -> str:
    """What is expected of a value of this type, or of this field of an `Options`."""
    metadata = kind.metadata if isinstance(kind, FieldInfo) else kind.__metadata__
    return next(entry.words for entry in metadata if isinstance(entry, Expected))


def is_allowed(field: FieldInfo, value: Any) -> bool:
    """Whether a field of an `Options` may have the value."""
    try:
        TypeAdapter(Annotated[(field.annotation, *field.metadata)]).validate_python(value)
    except ValidationError:
        return False
    return True


def closest(name: Any, known: Iterable[str], number: int = 1, cutoff: float = 0.6) -> list[str]:
    """Up to `number` known names that are spelled like this one, the most similar first."""
    return difflib.get_close_matches(str(name), list(known), number, cutoff)


def did_you_mean(name: Any, known: Iterable[str], prefix: str = "") -> str:
    """A question after a space, "Did you mean ...?"; empty where nothing is close."""
    return "".join(f" Did you mean {prefix}{meant}?" for meant in closest(name, known))
