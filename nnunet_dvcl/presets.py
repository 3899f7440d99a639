"""Configurations by name, for ``nnunet_dvcl configure --preset``."""

import json
from collections.abc import Mapping
from typing import Any

# keys as `nnunet_dvcl configure` takes them
PRESETS: dict[str, dict[str, Any]] = {
    # the network and the patches of the paper's protocol; docs/explanation/paper-protocol.md says what is known of it
    "paper": {
        "patch_size": [64, 128, 128],
        "batch_size": 2,
        "architecture.arch_kwargs.n_stages": 5,
        "architecture.arch_kwargs.features_per_stage": [16, 32, 64, 128, 256],
        "architecture.arch_kwargs.strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
        "architecture.arch_kwargs.kernel_sizes": [[3, 3, 3]] * 5,
        "architecture.arch_kwargs.n_conv_per_stage": [2] * 5,
        "architecture.arch_kwargs.n_conv_per_stage_decoder": [2] * 4,
    },
}


def assignments_of(preset: str) -> list[str]:
    """The preset as ``key=value``."""
    return [f"{key}={json.dumps(value)}" for key, value in PRESETS[preset].items()]


def differences_from(preset: str, configuration: Mapping[str, Any]) -> list[str]:
    """One line for each value of a resolved configuration of the plans that is not the preset's."""
    found = {key: _value_of(configuration, key.split(".")) for key in PRESETS[preset]}
    return [
        f"{key}: {json.dumps(found[key])} here, {json.dumps(value)} there"
        for key, value in PRESETS[preset].items()
        if found[key] != value
    ]


def _value_of(configuration: Mapping[str, Any], path: list[str]) -> Any:
    value: Any = configuration
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
