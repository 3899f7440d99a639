"""Values of nnU-Net's configuration that a method wants, for ``nnunet_dvcl configure --preset``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A trainer names its own in its attribute ``preset``.

    Attributes:
        name: as typed.
        values: keys as ``nnunet_dvcl configure`` takes them.
    """

    name: str
    values: Mapping[str, Any]

    @property
    def assignments(self) -> list[str]:
        """``key=value`` of each."""
        return [f"{key}={json.dumps(value)}" for key, value in self.values.items()]

    def differences(self, configuration: Mapping[str, Any]) -> list[str]:
        """One line for each value of a resolved configuration of the plans that is not the preset's."""
        found = {key: _value_of(configuration, key.split(".")) for key in self.values}
        return [
            f"{key}: {json.dumps(found[key])} here, {json.dumps(value)} there"
            for key, value in self.values.items()
            if found[key] != value
        ]


def _value_of(configuration: Mapping[str, Any], path: list[str]) -> Any:
    value: Any = configuration
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
