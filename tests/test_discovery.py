"""The start-up hook, and the folder it points nnU-Net's trainer finder at."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_dvcl import _register

SEARCH = "import nnunet_dvcl_trainers as module; print(sorted(name for name in vars(module) if name[0] != '_'))"


@pytest.fixture
def find(monkeypatch):
    """nnU-Net's own finder, with our folder registered behind nothing else."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setenv(_register.VARIABLE, _register.FOLDER)
    return recursive_find_trainer_class_by_name


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, ["OURS"]),
        ("", ["OURS"]),
        (" ", ["OURS"]),
        ("/one", ["/one", "OURS"]),
        (f"/one{os.pathsep}relative/two", ["/one", "relative/two", "OURS"]),
        ("OURS", ["OURS"]),
        (f"OURS{os.pathsep}/one", ["OURS", "/one"]),
        ("OURS-and-more", ["OURS-and-more", "OURS"]),
    ],
)
def test_register_appends_once_and_keeps_what_the_user_set(before, after, monkeypatch):
    monkeypatch.delenv(_register.VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(_register.VARIABLE, before.replace("OURS", _register.FOLDER))
    _register.register()
    _register.register()
    expected = os.pathsep.join(after).replace("OURS", _register.FOLDER)
    assert os.environ[_register.VARIABLE] == expected


def test_the_folder_holds_one_module_with_a_name_of_its_own():
    modules = {path.name for path in Path(_register.FOLDER).glob("*.py")}
    assert modules == {"__init__.py", "nnunet_dvcl_trainers.py"}


def test_nnunet_finds_the_very_classes_of_nnunet_dvcl_trainers(find):
    from nnunet_dvcl import trainers

    assert "nnUNetTrainerDVCL" in trainers.__all__
    for name in trainers.__all__:
        found = find(name)
        assert found is getattr(trainers, name)
        assert found is find(name)
        assert found.__module__.startswith("nnunet_dvcl.trainers")
        assert pickle.loads(pickle.dumps(found)) is found


def test_a_trainer_in_the_users_folder_comes_first(find, monkeypatch, tmp_path):
    (tmp_path / "own_trainer.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class nnUNetTrainerDVCL(nnUNetTrainer): pass\n"
        "class nnUNetTrainerOwn(nnUNetTrainer): pass\n"
    )
    monkeypatch.setenv(_register.VARIABLE, str(tmp_path))
    _register.register()
    assert find("nnUNetTrainerDVCL").__module__ == "own_trainer"
    assert find("nnUNetTrainerOwn").__module__ == "own_trainer"
    assert find("nnUNetTrainerCPS").__module__.startswith("nnunet_dvcl.trainers")


def import_discovery(package_parent: Path) -> subprocess.CompletedProcess:
    """Import the thin module as the finder does, with ``package_parent`` alone on the path (-S: no site-packages)."""
    setup = f"import sys; sys.path[:0] = [{_register.FOLDER!r}, {str(package_parent)!r}]; "
    command = [sys.executable, "-I", "-S", "-B", "-c", setup + SEARCH]
    return subprocess.run(command, capture_output=True, text=True, cwd=package_parent)


def make_package(parent: Path, trainers: str) -> None:
    for folder, text in (("nnunet_dvcl", ""), ("nnunet_dvcl/trainers", trainers)):
        (parent / folder).mkdir()
        (parent / folder / "__init__.py").write_text(text)


def test_new_trainers_need_no_change_here(tmp_path):
    make_package(tmp_path, "class nnUNetTrainerNew: pass\nclass Helper: pass\n__all__ = ['nnUNetTrainerNew']")
    assert import_discovery(tmp_path).stdout == "['nnUNetTrainerNew']\n"


def test_another_environment_is_left_alone(tmp_path):
    assert import_discovery(tmp_path).stdout == "[]\n"


def test_a_plain_folder_of_our_name_is_no_package(tmp_path):
    (tmp_path / "nnunet_dvcl").mkdir()
    assert import_discovery(tmp_path).stdout == "[]\n"


@pytest.mark.parametrize("missing", ["import no_such_dependency", "from nnunet_dvcl import no_such_name"])
def test_any_other_import_error_surfaces(missing, tmp_path):
    make_package(tmp_path, missing)
    done = import_discovery(tmp_path)
    assert done.returncode != 0
    assert "no_such" in done.stderr.splitlines()[-1]


class TestStartupLine:
    """``nnunet_dvcl.pth``, run as ``site`` runs it."""

    LINE = Path(_register.FOLDER).with_name("nnunet_dvcl.pth").read_text()

    def run(self, path: Path, environment: dict[str, str] | None = None) -> list[str]:
        code = (
            f"import os, sys; sys.path[:0] = [{str(path)!r}]\n"
            "before = set(sys.modules)\n"
            f"exec({self.LINE!r})\n"
            f"print(os.environ.get({_register.VARIABLE!r}))\n"
            "print(sorted(set(sys.modules) - before))"
        )
        command = [sys.executable, "-S", "-B", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, cwd=path, env=environment or {}, check=True)
        assert done.stderr == ""
        return done.stdout.splitlines()

    def test_is_one_line_that_site_will_run(self):
        assert self.LINE.startswith("import ")
        assert self.LINE.endswith("\n")
        assert self.LINE.count("\n") == 1

    def test_registers_and_leaves_no_module_behind(self):
        root = Path(_register.FOLDER).parents[1]
        assert self.run(root) == [_register.FOLDER, "[]"]
        assert self.run(root, {_register.VARIABLE: "/own"})[0] == f"/own{os.pathsep}{_register.FOLDER}"

    @pytest.mark.parametrize("removed", ["nnunet_dvcl", "nnunet_dvcl/__init__.py", "nnunet_dvcl/_register.py"])
    def test_is_silent_when_the_package_is_half_removed(self, removed, tmp_path):
        package = tmp_path / "nnunet_dvcl"
        package.mkdir()
        for name in ("__init__.py", "_register.py"):
            shutil.copy(Path(_register.FOLDER).with_name(name), package)
        path = tmp_path / removed
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert len(self.run(tmp_path)) == 2

    def test_is_silent_when_the_package_is_broken(self, tmp_path):
        (tmp_path / "nnunet_dvcl").mkdir()
        (tmp_path / "nnunet_dvcl/__init__.py").write_text("half a file (")
        assert self.run(tmp_path)[0] == "None"
