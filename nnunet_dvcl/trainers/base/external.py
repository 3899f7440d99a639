"""Trainers of the user's own, in the folders that ``nnUNet_extTrainer`` names."""

import importlib.util
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType

from nnunet_dvcl import _register


@cache
def import_external_trainers() -> list[ModuleType]:
    """Imports every module of these folders once, as nnU-Net does when it looks for a trainer; a broken one is skipped.

    nnU-Net's own finder stops at the first trainer of a name and forgets the module again.
    """
    modules = []
    for folder in os.environ.get(_register.VARIABLE, "").split(os.pathsep):
        if not folder.strip() or os.path.realpath(folder) == os.path.realpath(_register.FOLDER):
            continue
        for file in sorted(Path(folder).rglob("*.py")):
            spec = importlib.util.spec_from_file_location(f"nnunet_dvcl_external_{file.stem}", file)
            module = importlib.util.module_from_spec(spec)
            with suppress(Exception):  # nnU-Net tells what is wrong with it when it is asked for
                spec.loader.exec_module(module)
                modules.append(module)
    return modules
