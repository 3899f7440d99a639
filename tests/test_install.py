"""The package as pip installs it, from a wheel and editable, into throw-away environments."""

import ast
import importlib.metadata as metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
KINDS = ("wheel", "editable")
PRINT_VARIABLE = "import os; print(os.environ.get('nnUNet_extTrainer'))"
FIND = """
import pickle
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
found = find("nnUNetTrainerDVCL")
assert found is find("nnUNetTrainerDVCL")
assert pickle.loads(pickle.dumps(found)) is found
import sys
print(found.__module__, sys.modules["nnunet_dvcl"].__file__)
"""


class Environment:
    """A virtual environment that sees this interpreter's packages behind its own, all but nnunet_dvcl itself."""

    def __init__(self, folder: Path):
        self.folder = folder / "venv"
        self.source = folder / "source"
        venv.create(self.folder, with_pip=False)
        self.python = self.folder / "bin/python"
        self.site_packages = next(self.folder.glob("lib/python*/site-packages"))
        borrowed = folder / "borrowed"
        borrowed.mkdir()
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            if not path.name.startswith(("nnunet_dvcl", "__editable__")):
                (borrowed / path.name).symlink_to(path)
        (self.site_packages / "zz_borrowed.pth").write_text(f"{borrowed}\n")
        shutil.copytree(ROOT / "nnunet_dvcl", self.source / "nnunet_dvcl", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, self.source)

    def run(self, *command: str | Path, variables: dict[str, str] | None = None) -> str:
        """Standard output of a command, run without any variable of nnU-Net's, pip's or Python's."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        environment = {**kept, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **(variables or {})}
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def start(self, code: str, **variables: str) -> str:
        return self.run(self.python, "-c", code, variables=variables)

    def pip(self, *arguments: str | Path) -> None:
        self.run(self.python, "-m", "pip", "-q", *arguments)

    def install(self, kind: str) -> None:
        editable = ["-e"] if kind == "editable" else []
        self.pip("install", "--no-deps", "--no-build-isolation", *editable, self.source)

    def files(self) -> set[str]:
        paths = (path.relative_to(self.folder) for path in self.folder.rglob("*"))
        return {str(path) for path in paths if "__pycache__" not in path.parts}


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def installed(kind, tmp_path_factory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp(kind))
    environment.install(kind)
    return environment


@pytest.fixture
def ours(kind, installed) -> str:
    """The folder that has to be registered."""
    parent = installed.source if kind == "editable" else installed.site_packages
    return str(parent.resolve() / "nnunet_dvcl/discovery")


@pytest.mark.slow
class TestInstalled:
    def test_record_holds_the_startup_file(self, installed):
        (record,) = installed.site_packages.glob("nnunet_dvcl-*.dist-info/RECORD")
        assert re.search(r"^nnunet_dvcl\.pth,sha256=", record.read_text(), re.MULTILINE)
        assert (installed.site_packages / "nnunet_dvcl.pth").read_text() == (
            ROOT / "nnunet_dvcl/nnunet_dvcl.pth"
        ).read_text()

    def test_nothing_but_our_package_is_installed(self, installed, kind):
        names = {path.name for path in installed.site_packages.iterdir()} - {"__pycache__", "zz_borrowed.pth"}
        version = metadata_version(installed)
        expected = {f"nnunet_dvcl-{version}.dist-info", "nnunet_dvcl.pth"}
        # One plain path, no import finder.
        expected |= {f"__editable__.nnunet_dvcl-{version}.pth"} if kind == "editable" else {"nnunet_dvcl"}
        assert names == expected

    def test_a_wheel_holds_every_module_and_an_editable_one_none(self, installed, kind):
        wanted = {path.relative_to(ROOT) for path in (ROOT / "nnunet_dvcl").rglob("*.py")}
        got = {path.relative_to(installed.site_packages) for path in installed.site_packages.rglob("*.py")}
        assert got == (wanted if kind == "wheel" else set())

    def test_python_starts_with_our_folder_registered(self, installed, ours):
        assert installed.start(PRINT_VARIABLE) == ours

    def test_what_the_user_set_stays_first(self, installed, ours):
        own = os.pathsep.join(("/own folder", "relative"))
        assert installed.start(PRINT_VARIABLE, nnUNet_extTrainer=own) == f"{own}{os.pathsep}{ours}"

    def test_a_child_process_does_not_add_it_again(self, installed, ours):
        child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {PRINT_VARIABLE!r}])"
        assert installed.start(child) == ours

    def test_starting_python_imports_nothing_because_of_us(self, installed):
        heavy = "import sys; print({'torch', 'nnunetv2', 'numpy', 'nnunet_dvcl'} & set(sys.modules))"
        assert installed.start(heavy) == "set()"

    def test_nnunet_finds_our_class(self, installed, ours):
        module, file = installed.start(FIND).splitlines()[-1].split(" ", 1)
        assert module.startswith("nnunet_dvcl.trainers.")
        assert Path(file).resolve() == Path(ours).with_name("__init__.py")

    def test_the_command_is_there_and_doctor_is_content(self, installed):
        command = installed.folder / "bin/nnunet_dvcl"
        assert installed.run(command, "--version").startswith("nnunet_dvcl ")
        folders = {name: str(installed.folder) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        report = installed.run(command, "doctor", variables=folders)
        assert "Ready to train." in report
        assert f"registered by {installed.site_packages / 'nnunet_dvcl.pth'}" in report


@pytest.mark.slow
def test_uninstalling_leaves_nothing_behind(kind, tmp_path):
    environment = Environment(tmp_path)
    before = environment.files()
    environment.install(kind)
    assert environment.start(PRINT_VARIABLE) != "None"
    environment.pip("uninstall", "-y", "nnunet_dvcl")
    assert environment.files() == before
    assert environment.start(PRINT_VARIABLE) == "None"


def test_dependencies_are_what_the_code_imports():
    trees = (ast.parse(path.read_text("utf-8")) for path in (ROOT / "nnunet_dvcl").rglob("*.py"))
    imports = {name.partition(".")[0] for tree in trees for node in ast.walk(tree) for name in imported(node)}
    distributions = metadata.packages_distributions()
    third_party = imports - sys.stdlib_module_names - {"nnunet_dvcl"}
    needed = {canonicalize_name(distributions[name][0]) for name in third_party}
    assert needed == {canonicalize_name(requirement.name) for requirement in declared_requirements()}


def test_every_dependency_has_a_lower_bound():
    for requirement in declared_requirements():
        assert any(specifier.operator == ">=" for specifier in requirement.specifier), requirement


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []


def declared_requirements() -> list[Requirement]:
    tree = ast.parse((ROOT / "setup.py").read_text("utf-8"))
    keywords = (node for node in ast.walk(tree) if isinstance(node, ast.keyword))
    (value,) = [keyword.value for keyword in keywords if keyword.arg == "install_requires"]
    return [Requirement(text) for text in ast.literal_eval(value)]


def metadata_version(environment: Environment) -> str:
    (folder,) = environment.site_packages.glob("nnunet_dvcl-*.dist-info")
    return folder.name.removeprefix("nnunet_dvcl-").removesuffix(".dist-info")
