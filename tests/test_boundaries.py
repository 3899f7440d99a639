"""losses/ and memory/ know neither nnU-Net, nor each other, nor the trainers; nothing imports against the direction."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nnunet_dvcl

PACKAGE = Path(nnunet_dvcl.__file__).parent

IMPORT_WITHOUT_NNUNET = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "nnunetv2":
            raise ImportError("nnunetv2 is blocked")

sys.meta_path.insert(0, Blocked())
import {module}
print(*(name for name in sys.modules if name.startswith("nnunet")))
"""


@pytest.mark.parametrize(("part", "other"), [("losses", "memory"), ("memory", "losses")])
def test_imports_without_nnunet_and_without_the_rest(part, other):
    code = IMPORT_WITHOUT_NNUNET.format(module=f"nnunet_dvcl.{part}")
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert f"nnunet_dvcl.{part}" in loaded
    for stranger in (other, "trainers", "data", "discovery", "tools", "cli"):
        assert not [name for name in loaded if f"{name}.".startswith(f"nnunet_dvcl.{stranger}.")]


def imported_modules(file: Path) -> set[str]:
    """Absolute names of what a file imports, imports inside of functions included."""
    package = [PACKAGE.name, *file.relative_to(PACKAGE).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


# what no part imports, beside `tools` (which only the command line does)
FORBIDDEN = {
    "voxels": ("nnunetv2", "losses", "memory", "labels", "networks", "data", "cascade", "diagnostics", "trainers"),
    "losses": ("nnunetv2", "memory", "labels", "networks", "data", "cascade", "diagnostics", "trainers"),
    "memory": ("nnunetv2", "losses", "labels", "networks", "data", "cascade", "diagnostics", "trainers"),
    "labels.py": ("nnunetv2", "memory", "data", "cascade", "diagnostics", "trainers"),
    "networks.py": ("nnunetv2", "losses", "memory", "data", "cascade", "diagnostics", "trainers"),
    "data": ("losses", "memory", "networks", "cascade", "diagnostics", "trainers"),
    "cascade": ("losses", "memory", "diagnostics", "trainers"),
    "diagnostics": ("trainers",),
    "trainers": (),
    "train.py": (),
    "figures.py": ("nnunetv2", "trainers"),
}


@pytest.mark.parametrize("part", FORBIDDEN)
def test_no_file_imports_against_the_direction(part):
    path = PACKAGE / part
    forbidden = [name if name == "nnunetv2" else f"nnunet_dvcl.{name.removesuffix('.py')}" for name in FORBIDDEN[part]]
    forbidden += ["nnunet_dvcl.discovery", "nnunet_dvcl.tools", "nnunet_dvcl.cli"]
    files = [path] if path.suffix else sorted(path.rglob("*.py"))
    assert files
    for file in files:
        for name in imported_modules(file):
            assert not f"{name}.".startswith(tuple(f"{x}." for x in forbidden)), f"{file} imports {name}"


def test_nothing_but_the_command_line_imports_the_tools():
    for file in sorted(PACKAGE.rglob("*.py")):
        if file != PACKAGE / "cli.py" and PACKAGE / "tools" not in file.parents:
            for name in imported_modules(file):
                assert not f"{name}.".startswith("nnunet_dvcl.tools."), f"{file} imports {name}"
