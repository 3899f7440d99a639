"""Every hyper-parameter: its default, its range, its equation. Overridden under the key ``"ssl"`` of the plans."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any

from nnunet_dvcl.errors import UserError


def _option(default: Any, kind: type, allowed: str, is_allowed: Callable[[Any], bool], optional: bool = False) -> Any:
    metadata = {"kind": kind, "allowed": allowed, "is_allowed": is_allowed, "optional": optional}
    return field(default=default, metadata=metadata)


def _count(default: int | None, least: int = 1) -> Any:
    optional = default is None
    words = f"a whole number of at least {least}" + (" or null" if optional else "")
    return _option(default, int, words, lambda value: value >= least, optional)


def _weight(default: float) -> Any:
    return _option(default, float, "a number of at least 0", lambda value: 0 <= value < float("inf"))


def _positive(default: float) -> Any:
    return _option(default, float, "a number above 0", lambda value: 0 < value < float("inf"))


def _share(default: float) -> Any:
    return _option(default, float, "a number in [0, 1]", lambda value: 0 <= value <= 1)


def _flag(default: bool) -> Any:
    return _option(default, bool, "true or false", lambda value: True)


@dataclass(frozen=True)
class TrainingConfig:
    """The schedule of a training; defaults are nnU-Net's own.

    Raises:
        UserError: a value of the wrong type or out of its range; names the key, the value and what is allowed.
    """

    optimizer: str = _option("sgd", str, 'one of "sgd", "adamw"', lambda value: value in ("sgd", "adamw"))
    initial_lr: float = _positive(0.01)
    num_epochs: int = _count(1000)
    num_iterations_per_epoch: int = _count(250)
    num_val_iterations_per_epoch: int = _count(50)
    seed: int | None = _count(None, least=0)  # null: unseeded, as nnU-Net

    def __post_init__(self) -> None:
        for option in fields(self):
            _check(option, getattr(self, option.name))

    @classmethod
    def from_plans(cls, configuration: dict) -> TrainingConfig:
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
        own = {option.name for option in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in own})

    def differences(self, other: dict[str, Any]) -> list[str]:
        """One line for each key whose value differs from a saved `dataclasses.asdict` of a config."""
        mine = asdict(self)
        return [
            f"ssl.{key}: {other.get(key, '(absent)')} there, {mine.get(key, '(absent)')} here"
            for key in sorted(mine.keys() | other.keys())
            if mine.get(key, ...) != other.get(key, ...)
        ]


@dataclass(frozen=True)
class SSLConfig(TrainingConfig):
    """What every semi-supervised trainer has."""

    unlabeled_batch_size: int | None = _count(None)  # null: the plan's batch size
    consistency_weight: float = _weight(0.1)  # λ_u of Eq. 3
    rampup_fraction: float = _share(1.0)  # T of the ramp w(t), as a share of training; 0: no ramp
    unlabeled_folder: bool = _flag(True)  # scans of imagesTr_unlabeled train; else only what the split withholds
    ignored_as_unlabeled: bool = _flag(True)  # voxels of the ignore label in labeled scans count as unlabeled ones


@dataclass(frozen=True)
class CPSConfig(SSLConfig):
    """What twin networks add."""

    independent_intensities: bool = _flag(False)  # each network sees its own intensity augmentation
    sequential_twins: bool = _flag(False)  # each network runs again for its gradients: half the memory


@dataclass(frozen=True)
class HqCLConfig(CPSConfig):
    """What HqCL adds. Defaults: the paper's where it gives one, else those that ``docs/`` gives reasons for."""

    contrastive_weight: float = _weight(0.1)  # λ_c of Eq. 3
    contrastive_start: float = _share(0.0)  # share of training before the contrast begins
    contrastive_rampup_fraction: float = _share(0.0)  # share of training over which λ_c rises then; 0: no ramp
    entropy_alpha: float = _option(0.5, float, "a number", lambda value: abs(value) < float("inf"))  # α of Eq. 5
    feature_dim: int = _count(64)  # d
    num_anchors: int = _count(256)  # M of Eq. 10, a class
    num_negatives: int = _count(50)  # N of Eq. 10, an anchor
    temperature: float = _positive(1.0)  # σ of Eq. 10
    bank_capacity: int = _count(4096)  # anchors kept for P_c of Eq. 8, a class


@dataclass(frozen=True)
class DVCLConfig(HqCLConfig):
    """What DVCL adds."""

    distance_weight: float = _weight(0.3)  # β of Eq. 3
    num_queries: int = _count(512)  # queries of DVCL, a network
    queue_capacity: int = _count(8192)  # candidates of Eq. 12
    num_neighbors: int = _count(5)  # K of Eq. 12
    num_outsiders: int = _count(5)  # K' of Eq. 12
    outlier_neighbors: int = _count(50)  # U of Eq. 15
    ordinary_affinity: float = _share(0.5)  # r of Eq. 14
    validation_voxels: int = _count(8192, least=0)  # on which Figure 6 is measured each epoch; 0: not at all

    def __post_init__(self) -> None:
        super().__post_init__()
        # a smaller queue would drop queries before their search
        if self.queue_capacity < 2 * self.num_queries:
            raise UserError(
                f"ssl.queue_capacity is {self.queue_capacity}, expected at least 2 * ssl.num_queries = "
                f"{2 * self.num_queries}: the queries of both networks have to fit into the queue."
            )
        if self.outlier_neighbors < self.num_neighbors:
            raise UserError(
                f"ssl.outlier_neighbors is {self.outlier_neighbors}, expected at least ssl.num_neighbors = "
                f"{self.num_neighbors} (the paper: U is significantly larger than K)."
            )


@dataclass(frozen=True)
class PaperSchedule(TrainingConfig):
    """The schedule of the paper's protocol, as far as it is known: 20,000 iterations of SGD."""

    initial_lr: float = _positive(0.05)  # 0.1 on the paper's loss, of which the trainers' is twice
    num_epochs: int = _count(80)  # of 250 iterations


@dataclass(frozen=True)
class PaperCPSConfig(PaperSchedule, CPSConfig):
    """CPS in the paper's protocol."""


@dataclass(frozen=True)
class PaperDVCLConfig(PaperSchedule, DVCLConfig):
    """DVCL in the paper's protocol."""


def known_options() -> dict[str, Field]:
    """Every key that may stand under ``"ssl"``, over all configs."""
    return {option.name: option for config in _all_configs(TrainingConfig) for option in fields(config)}


def check_ssl(values: Any) -> None:
    """Checks what stands under the key ``"ssl"``, whichever trainer it is for.

    Raises:
        UserError: not an object, an unknown key, a value of the wrong type or out of its range.
    """
    if not isinstance(values, dict):
        raise UserError(
            f'The key "ssl" of the plans holds {values!r}, expected an object such as {{"num_epochs": 20}}.'
        )
    known = known_options()
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean ssl.{close[0]}?" if close else ""
            raise UserError(f"Unknown key ssl.{key} (value {value!r}).{hint} Known keys: {', '.join(known)}.")
        _check(known[key], value)


def _check(option: Field, value: Any) -> None:
    kind, optional = option.metadata["kind"], option.metadata["optional"]
    if value is None and optional:
        return
    # True is an int to Python
    right_type = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (
        kind is bool
    )
    if not right_type or not option.metadata["is_allowed"](value):
        raise UserError(f"ssl.{option.name} is {value!r}, expected {option.metadata['allowed']}.")


def _all_configs(config: type) -> Iterator[type]:
    yield config
    for subclass in config.__subclasses__():
        yield from _all_configs(subclass)
