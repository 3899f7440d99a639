"""``nnunet_dvcl doctor``: what would keep a training from starting, and how to mend it."""

import importlib
import importlib.metadata as metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement

from nnunet_dvcl import __version__, _register
from nnunet_dvcl.tools.quiet import quiet

DISTRIBUTION = "nnunet_dvcl"
LOW_DISK_GB = 10


class Finding(NamedTuple):
    """One line of the report; ``remedy`` says how to mend what is not ``ok``."""

    level: Literal["ok", "warn", "FAIL"]
    text: str
    remedy: str = ""


def check_versions() -> Iterator[Finding]:
    """Python and each declared requirement against what is installed."""
    yield Finding("ok", f"python {platform.python_version()} ({sys.executable})")
    yield Finding("ok", f"nnunet_dvcl {__version__} ({Path(__file__).parent})")
    if _installed_version(DISTRIBUTION) is None:
        yield Finding("FAIL", "nnunet_dvcl runs from a folder and is not installed", "pip install -e FOLDER")
        return
    for requirement in map(Requirement, metadata.requires(DISTRIBUTION) or []):
        name, version = requirement.name, _installed_version(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            yield Finding("ok", f"{name} {version}")
        else:
            wrong = "is not installed" if version is None else f"{version}, but {requirement.specifier} is needed"
            yield Finding("FAIL", f"{name} {wrong}", f'pip install "{requirement}"')


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_torchvision() -> Iterator[Finding]:
    """nnU-Net's trainer finder imports torchvision; its compiled operators fit one version and build of torch only."""
    torch, torchvision = (_installed_version(name) or "(not installed)" for name in ("torch", "torchvision"))
    try:
        importlib.import_module("torchvision.ops")
        yield Finding("ok", f"torchvision {torchvision} fits torch {torch}")
    except Exception as error:  # a mismatch shows as RuntimeError, OSError, AttributeError ...
        yield Finding(
            "FAIL",
            f"torchvision {torchvision} does not fit torch {torch}: {type(error).__name__}: {error}",
            "install both in one command and from one index: pip install --force-reinstall torch torchvision",
        )


def check_registration() -> Iterator[Finding]:
    """Is the discovery folder in ``nnUNet_extTrainer``, and who put it there?"""
    value = os.environ.get(_register.VARIABLE, "")
    hooks = [hook for entry in sys.path if entry and (hook := Path(entry, "nnunet_dvcl.pth")).is_file()]
    if _register.FOLDER in value.split(os.pathsep):
        by = f"by {hooks[0]}" if hooks else "by hand"
        yield Finding("ok", f"trainers registered {by}: {_register.VARIABLE}={value}")
    else:
        yield Finding(
            "FAIL",
            f"trainers not registered: {_register.VARIABLE}={value or '(not set)'}",
            f"pip install nnunet_dvcl again, or: export {_register.VARIABLE}={_register.FOLDER}",
        )


def check_trainers() -> Iterator[Finding]:
    """Does nnU-Net's own finder find our trainers, and are they ours?"""
    try:
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

        from nnunet_dvcl import trainers
    except Exception as error:
        yield Finding("FAIL", f"the trainers cannot be imported: {error!r}", "mend what this message names")
        return
    ours = {name: getattr(trainers, name) for name in trainers.__all__ if name != "nnUNetTrainerSSL"}
    one = "nnUNetTrainerDVCL"
    try:
        found = {one: find(one)}  # which takes a while, and imports all of nnU-Net's own
        found |= {name: find(name) for name in _names_of_others(ours) - {one}}
    except Exception as error:
        text = f"nnU-Net does not find {one}: {type(error).__name__}: {error}"
        yield Finding("FAIL", text, "mend the first [FAIL] above, or what the message names")
        return
    strangers = {name: trainer for name, trainer in found.items() if trainer is not ours[name]}
    for name, stranger in strangers.items():
        remedy = f"rename that class, or take its folder out of {_register.VARIABLE}"
        yield Finding("FAIL", f"nnU-Net finds another {name} first: {stranger.__module__}.{name}", remedy)
    if not strangers:
        yield Finding("ok", f"nnU-Net finds all {len(ours)} trainers (listed by nnunet_dvcl trainers)")


def _names_of_others(ours: dict[str, type]) -> set[str]:
    """The names of our trainers that are other things in nnU-Net's trainer modules or in the user's."""
    from nnunet_dvcl.trainers.base.external import import_external_trainers

    modules = [module for name, module in sys.modules.items() if name.startswith("nnunetv2.training.nnUNetTrainer.")]
    modules += import_external_trainers()
    return {name for name, trainer in ours.items() for m in modules if getattr(m, name, trainer) is not trainer}


def check_folders() -> Iterator[Finding]:
    """nnU-Net's three folders: set, there or to be made by nnU-Net, writable, and with room."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        yield _check_folder(variable)


def _check_folder(variable: str) -> Finding:
    folder = os.environ.get(variable)
    if not folder:
        return Finding("FAIL", f"{variable} is not set", f"export {variable}=/path/to/{variable}")
    to_be_made = variable != "nnUNet_raw" and not os.path.lexists(folder)  # nnU-Net makes these two
    if not (to_be_made or os.path.isdir(folder)):
        return Finding("FAIL", f"{variable}={folder} is not a folder", f"mkdir -p '{folder}', or correct {variable}")
    place = next(str(path) for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.is_dir())
    try:
        # Not os.access: it knows neither read-only mounts of every kind nor quotas.
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        level = "warn" if variable == "nnUNet_raw" else "FAIL"  # no training writes there
        cannot = f"is not there, and {place} is not writable" if to_be_made else "is not writable"
        return Finding(level, f"{variable}={folder} {cannot}: {error.strerror}", f"chmod u+w '{place}'")
    if to_be_made:
        return Finding(
            "warn",
            f"{variable}={folder} is not there yet",
            f"nothing, if it is new: nnU-Net makes it; else correct {variable}",
        )
    free = shutil.disk_usage(folder).free / 1e9
    if free < LOW_DISK_GB:
        return Finding("warn", f"{variable}={folder}: only {free:.1f} GB free", "make room, or move the folder")
    return Finding("ok", f"{variable}={folder} ({free:.0f} GB free)")


def check_device() -> Iterator[Finding]:
    """What nnU-Net would train on."""
    try:
        import torch
    except Exception as error:
        yield Finding("FAIL", f"torch cannot be imported: {error!r}", "pip install --force-reinstall torch torchvision")
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding("ok", f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    elif torch.backends.mps.is_available():
        yield Finding("ok", f"mps (-device mps, with {', '.join(_without_float64())})")
    else:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        remedy = "for small data train with -device cpu; else check the driver (nvidia-smi) and torch's build"
        yield Finding("warn", f"cpu only, no GPU found ({built})", remedy)
    yield Finding("ok", f"torch threads: {torch.get_num_threads()}, CPU cores: {os.cpu_count()}")


def _without_float64() -> list[str]:
    """The trainers that run on mps."""
    from nnunet_dvcl import trainers

    return [name for name in trainers.__all__ if not getattr(getattr(trainers, name), "needs_float64", False)]


CHECKS = (check_versions, check_torchvision, check_registration, check_trainers, check_folders, check_device)


def main() -> int:
    """Print one line a finding; returns 1 when there is a ``[FAIL]``, else 0."""
    failures = 0
    for check in CHECKS:
        with quiet():
            findings = list(check())
        for level, text, remedy in findings:
            print(f"{f'[{level}]':<6} {text}" + (f"\n       -> {remedy}" if remedy else ""), flush=True)
            failures += level == "FAIL"
    print(f"\n{failures} problem(s) would keep a training from starting." if failures else "\nReady to train.")
    return int(failures > 0)
