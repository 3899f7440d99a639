"""What stands under the key ``"ssl"`` of a configuration of the plans: each trainer's hyper-parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.options import (
    Count,
    CountFrom0,
    Flag,
    Options,
    Positive,
    choice,
    did_you_mean,
    is_allowed,
    or_null,
    user_error,
    words_of,
)
from nnunet_dvcl.trainers.base.external import import_external_trainers

C = TypeVar("C", bound="TrainingConfig")


class TrainingConfig(Options):
    """The schedule of a training; defaults are nnU-Net's own.

    A method's config stands in the method's file and derives from this one and from those of its parts.

    Raises:
        UserError: a value of the wrong type or out of its range; names the key, the value and what is allowed.
    """

    may_change: ClassVar[frozenset[str]] = frozenset()  # keys that a training which goes on may have another value of

    optimizer: choice("sgd", "adamw") = "sgd"  # as nnU-Net; "adamw" for short trainings
    initial_lr: Positive = 0.01  # learning rate of the first epoch
    num_epochs: Count = 1000  # epochs
    num_iterations_per_epoch: Count = 250  # training iterations an epoch
    num_val_iterations_per_epoch: Count = 50  # validation batches an epoch, for nnU-Net's pseudo Dice
    seed: or_null(CountFrom0) = None  # null: unseeded, as nnU-Net
    mirroring: Flag = True  # in training and prediction; false where left and right organs differ by their side alone

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise user_error(error, "ssl") from error

    @classmethod
    def from_plans(cls: type[C], configuration: dict) -> C:
        """The values under the key ``"ssl"`` of a configuration of the plans, defaults for the rest.

        A key of another trainer's config is checked and then left to that trainer, so that one configuration serves
        several trainers.

        Args:
            configuration: a resolved configuration, ``ConfigurationManager.configuration``.

        Raises:
            UserError: an unknown key, a value of the wrong type or out of its range.
        """
        values = configuration.get("ssl", {})
        check_ssl(values)
        return cls(**{key: value for key, value in values.items() if key in cls.model_fields})

    def differences(self, other: dict[str, Any]) -> list[str]:
        """One line for each key whose value differs from a saved ``model_dump`` of a config, and may not."""
        mine = self.model_dump()
        return [
            f"ssl.{key}: {other.get(key, '(absent)')} there, {mine.get(key, '(absent)')} here"
            for key in sorted((mine.keys() | other.keys()) - self.may_change)
            if mine.get(key, ...) != other.get(key, ...)
        ]


def known_options() -> dict[str, list[FieldInfo]]:
    """Every key that may stand under ``"ssl"``, with what each config of an imported trainer says of it."""
    known: dict[str, list[FieldInfo]] = {}
    for config in _all_configs(TrainingConfig):
        for key, field in config.model_fields.items():
            known.setdefault(key, []).append(field)
    return known


def check_ssl(values: Any) -> None:
    """Checks what stands under the key ``"ssl"``, whichever trainer it is for: one of them has to allow each value.

    Raises:
        UserError: not an object, an unknown key, a value of the wrong type or out of its range.
    """
    if not isinstance(values, dict):
        raise UserError(
            f'The key "ssl" of the plans holds {values!r}, expected an object such as {{"num_epochs": 20}}.'
        )
    known = known_options()
    if values.keys() - known.keys():
        import_external_trainers()  # one of the user's own may know the key
        known = known_options()
    for key, value in values.items():
        if key not in known:
            hint = did_you_mean(key, known, "ssl.")
            raise UserError(f"Unknown key ssl.{key} (value {value!r}).{hint}\nKnown keys: {', '.join(known)}.")
        if not any(is_allowed(field, value) for field in known[key]):
            allowed = " or ".join(dict.fromkeys(words_of(field) for field in known[key]))
            raise UserError(f"ssl.{key} is {value!r}, expected {allowed}.")


def _all_configs(config: type[TrainingConfig]) -> Iterator[type[TrainingConfig]]:
    yield config
    for subclass in config.__subclasses__():
        yield from _all_configs(subclass)
