"""Values that a user writes: classes of them, checked as a whole, with errors that say what was expected.

A class derives from `Options` and names a type of this module, or one made by `option`, for each value::

    class TeacherOptions(Options):
        teacher_decay: Share = 0.99
        num_teachers: option(int, "1 or 2", ge=1, le=2) = 1
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError
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


Text = option(str, "text")
Flag = option(bool, "true or false")
Count = option(int, "a whole number of at least 1", ge=1)
CountFrom0 = option(int, "a whole number of at least 0", ge=0)
Number = option(float, "a number", allow_inf_nan=False)
Positive = option(float, "a number above 0", gt=0, allow_inf_nan=False)
Weight = option(float, "a number of at least 0", ge=0, allow_inf_nan=False)
Share = option(float, "a number in [0, 1]", ge=0, le=1)


class Options(BaseModel):
    """Checked values that never change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls: type[T], values: Any, where: str = "") -> T:
        """An instance of what was parsed from JSON or YAML.

        Args:
            values: a mapping.
            where: what the keys belong to, for errors: "ssl" makes "ssl.num_epochs is 0, expected ...".

        Raises:
            UserError: not a mapping, an unknown key (with a suggestion), a missing one, or a value that is not what was
                expected; names the first of them.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise user_error(error, cls, where) from error


def user_error(error: ValidationError, model: type[BaseModel], where: str = "") -> UserError:
    """The first problem that pydantic found in values for `model`, in our words; see `Options.read`."""
    return UserError(_problem(model, error.errors()[0], where))


def _problem(model: type[BaseModel], error: ErrorDetails, where: str) -> str:
    *place, last = error["loc"] or ("",)
    path = _path(where, error["loc"])
    match error["type"]:
        case "extra_forbidden":
            known = [field.alias or name for name, field in _model_at(model, place).model_fields.items()]
            prefix = _path(where, place) + "." if where or place else ""
            return f"Unknown key {path}.{did_you_mean(last, known, prefix)} Known keys here: {', '.join(known)}."
        case "missing":
            return f"The key {path} is missing."
        case "model_type":
            return f"{path} is {error['input']!r}, expected {MAPPING}."
        case _:
            return f"{path} is {error['input']!r}, expected {error['msg']}."


def _path(where: str, place: Iterable[int | str]) -> str:
    """ "splits.labeled[0]"."""
    for part in place:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else part
    return where


def _model_at(model: type[BaseModel], place: Iterable[int | str]) -> type[BaseModel]:
    """The class that holds what stands there."""
    for part in place:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if part in fields:
            model = next(_models_in(fields[part].annotation))
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


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
