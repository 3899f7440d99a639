"""``nnunet_dvcl doctor``: each thing that can be wrong is named, with its remedy."""

import sys
import tempfile
import warnings
from collections import namedtuple

import pytest
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnUNetTrainer_module
from nnunetv2.utilities import find_objects

from nnunet_dvcl import _register, trainers
from nnunet_dvcl.tools import doctor
from nnunet_dvcl.tools.doctor import Finding
from nnunet_dvcl.trainers.base.external import import_external_trainers

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture
def folders(monkeypatch, tmp_path):
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


def only_failure(findings) -> Finding:
    (failure,) = [finding for finding in findings if finding.level == "FAIL"]
    assert failure.remedy
    return failure


def levels(findings) -> list[str]:
    return [finding.level for finding in findings]


class TestVersions:
    def declare(self, monkeypatch, *requirements: str) -> None:
        monkeypatch.setattr(doctor.metadata, "requires", lambda name: list(requirements))

    def test_what_is_installed_in_range_is_ok(self, monkeypatch):
        self.declare(monkeypatch, "nnunetv2<3,>=2.8.1", "numpy>=1.24", 'no_such; extra == "test"')
        assert levels(doctor.check_versions()) == ["ok"] * 4

    @pytest.mark.parametrize("requirement", ["nnunetv2<2", "nnunetv2>=99"])
    def test_a_version_out_of_range_is_named_with_the_range(self, requirement, monkeypatch):
        self.declare(monkeypatch, requirement)
        failure = only_failure(doctor.check_versions())
        assert requirement.removeprefix("nnunetv2") in failure.text
        assert failure.remedy == f'pip install "{requirement}"'

    def test_a_missing_package_is_named(self, monkeypatch):
        self.declare(monkeypatch, "no_such_package>=1")
        assert "no_such_package is not installed" in only_failure(doctor.check_versions()).text

    def test_running_from_a_folder_without_an_install_is_said(self, monkeypatch):
        monkeypatch.setattr(doctor, "DISTRIBUTION", "no_such_package")
        assert "not installed" in only_failure(doctor.check_versions()).text


def test_a_torchvision_that_does_not_fit_torch_is_named(monkeypatch):
    assert levels(doctor.check_torchvision()) == ["ok"]
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    failure = only_failure(doctor.check_torchvision())
    assert "does not fit torch" in failure.text
    assert "torch torchvision" in failure.remedy


class TestRegistration:
    def test_by_hand(self, monkeypatch):
        monkeypatch.setattr(sys, "path", [])
        monkeypatch.setenv(_register.VARIABLE, _register.FOLDER)
        (finding,) = doctor.check_registration()
        assert finding.level == "ok"
        assert "by hand" in finding.text

    def test_by_the_startup_file(self, monkeypatch, tmp_path):
        (tmp_path / "nnunet_dvcl.pth").touch()
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        monkeypatch.setenv(_register.VARIABLE, _register.FOLDER)
        (finding,) = doctor.check_registration()
        assert f"by {tmp_path / 'nnunet_dvcl.pth'}" in finding.text

    @pytest.mark.parametrize("value", [None, "/another/folder"])
    def test_not_at_all(self, value, monkeypatch):
        monkeypatch.delenv(_register.VARIABLE, raising=False)
        if value:
            monkeypatch.setenv(_register.VARIABLE, value)
        failure = only_failure(doctor.check_registration())
        assert (value or "(not set)") in failure.text
        assert f"export {_register.VARIABLE}={_register.FOLDER}" in failure.remedy


class TestTrainers:
    @pytest.fixture(autouse=True)
    def external_trainers_anew(self):
        import_external_trainers.cache_clear()
        yield
        import_external_trainers.cache_clear()

    def test_found_and_ours_is_one_line(self, monkeypatch, capsys):
        monkeypatch.setenv(_register.VARIABLE, _register.FOLDER)
        monkeypatch.setattr(doctor, "CHECKS", [doctor.check_trainers])
        assert doctor.main() == 0
        expected = f"[ok]   nnU-Net finds all {len(trainers.__all__) - 1} trainers (listed by nnunet_dvcl trainers)"
        assert capsys.readouterr().out == f"{expected}\n\nReady to train.\n"

    def test_the_slow_finder_is_asked_once(self, monkeypatch):
        monkeypatch.setenv(_register.VARIABLE, _register.FOLDER)
        asked, find = [], find_objects.recursive_find_trainer_class_by_name
        monkeypatch.setattr(
            find_objects, "recursive_find_trainer_class_by_name", lambda name: asked.append(name) or find(name)
        )
        assert levels(doctor.check_trainers()) == ["ok"]
        assert len(asked) == 1

    def test_not_found(self, monkeypatch):
        monkeypatch.delenv(_register.VARIABLE, raising=False)
        assert "does not find" in only_failure(doctor.check_trainers()).text

    @pytest.mark.parametrize("name", ["nnUNetTrainerDVCL", "nnUNetTrainerMT"])
    def test_hidden_by_another_class_of_the_same_name(self, name, monkeypatch, tmp_path):
        (tmp_path / "own_trainer.py").write_text(
            "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
            f"class {name}(nnUNetTrainer): pass\n"
        )
        monkeypatch.setenv(_register.VARIABLE, str(tmp_path))
        _register.register()
        failure = only_failure(doctor.check_trainers())
        assert f"own_trainer.{name}" in failure.text

    def test_hidden_by_one_of_nnunets(self, monkeypatch):
        monkeypatch.setenv(_register.VARIABLE, _register.FOLDER)
        monkeypatch.setattr(nnUNetTrainer_module, "nnUNetTrainerMT", nnUNetTrainer_module.nnUNetTrainer, raising=False)
        assert "finds another nnUNetTrainerMT first" in only_failure(doctor.check_trainers()).text

    def test_not_importable(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "nnunet_dvcl.trainers", None)
        monkeypatch.delattr("nnunet_dvcl.trainers", raising=False)
        assert "cannot be imported" in only_failure(doctor.check_trainers()).text


class TestFolders:
    def test_all_there(self, folders):
        assert "FAIL" not in levels(doctor.check_folders())

    @pytest.mark.parametrize("name", FOLDERS)
    def test_not_set(self, name, folders, monkeypatch):
        monkeypatch.delenv(name)
        failure = only_failure(doctor.check_folders())
        assert failure.text == f"{name} is not set"
        assert f"export {name}=" in failure.remedy

    def test_no_raw_data(self, folders):
        (folders / "nnUNet_raw").rmdir()
        failure = only_failure(doctor.check_folders())
        assert str(folders / "nnUNet_raw") in failure.text
        assert failure.remedy.startswith("mkdir")

    @pytest.mark.parametrize("name", FOLDERS[1:])
    def test_what_nnunet_makes_keeps_no_training_from_starting(self, name, folders, monkeypatch):
        monkeypatch.setenv(name, str(folders / "new" / name))
        (finding,) = [finding for finding in doctor.check_folders() if "not there yet" in finding.text]
        assert finding.level == "warn"
        assert str(folders / "new" / name) in finding.text
        assert not (folders / "new").exists()

    @pytest.mark.parametrize("name", FOLDERS[1:])
    def test_what_nnunet_cannot_make(self, name, folders, monkeypatch):
        (folders / "file").touch()
        monkeypatch.setenv(name, str(folders / "file"))
        assert "is not a folder" in only_failure(doctor.check_folders()).text
        monkeypatch.setenv(name, "/proc/new")
        assert "/proc is not writable" in only_failure(doctor.check_folders()).text

    @pytest.mark.parametrize(("name", "level"), list(zip(FOLDERS, ("warn", "FAIL", "FAIL"), strict=True)))
    def test_not_writable(self, name, level, folders, monkeypatch):
        open_file = tempfile.TemporaryFile

        def refuse(dir):
            if dir.endswith(name):
                raise PermissionError(13, "Permission denied")
            return open_file(dir=dir)

        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
        (finding,) = [finding for finding in doctor.check_folders() if "not writable" in finding.text]
        assert finding.level == level
        assert name in finding.text
        assert "Permission denied" in finding.text

    def test_little_room_is_a_warning(self, folders, monkeypatch):
        usage = namedtuple("usage", "total used free")(100e9, 99e9, 1e9)
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
        assert levels(doctor.check_folders()) == ["warn"] * 3

    def test_nothing_is_left_in_them(self, folders):
        list(doctor.check_folders())
        assert all(path.is_dir() for path in folders.rglob("*"))


class TestDevice:
    @pytest.fixture(autouse=True)
    def bare(self, monkeypatch):
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        return torch

    def test_no_gpu_is_a_warning(self):
        first, threads = doctor.check_device()
        assert first.level == "warn"
        assert "-device cpu" in first.remedy
        assert threads.level == "ok"

    def test_cuda(self, bare, monkeypatch):
        properties = namedtuple("properties", "name total_memory")("Card", 24 * 2**30)
        monkeypatch.setattr(bare.cuda, "is_available", lambda: True)
        monkeypatch.setattr(bare.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(bare.cuda, "get_device_properties", lambda index: properties)
        assert [finding.text for finding in doctor.check_device()][:2] == ["cuda:0 Card, 24 GiB", "cuda:1 Card, 24 GiB"]

    def test_torch_that_cannot_be_imported(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        assert "torch" in only_failure(doctor.check_device()).text


class TestReport:
    def report(self, monkeypatch, *findings: Finding) -> int:
        monkeypatch.setattr(doctor, "CHECKS", [lambda: iter(findings)])
        return doctor.main()

    def test_a_failure_is_printed_with_its_remedy_and_exits_1(self, monkeypatch, capsys):
        assert self.report(monkeypatch, Finding("ok", "fine"), Finding("FAIL", "broken", "mend it so")) == 1
        assert capsys.readouterr().out.startswith("[ok]   fine\n[FAIL] broken\n       -> mend it so\n")

    def test_a_warning_exits_0(self, monkeypatch, capsys):
        assert self.report(monkeypatch, Finding("warn", "slow", "buy a GPU")) == 0
        assert "[warn] slow" in capsys.readouterr().out

    def test_what_others_print_and_warn_of_is_not_shown(self, monkeypatch, capsys, recwarn):
        def noisy():
            print("nnUNet_raw is not defined")
            warnings.warn("`torch.jit.interface` is deprecated", FutureWarning, stacklevel=1)
            yield Finding("ok", "fine")

        monkeypatch.setattr(doctor, "CHECKS", [noisy])
        assert doctor.main() == 0
        assert capsys.readouterr() == ("[ok]   fine\n\nReady to train.\n", "")
        assert not recwarn

    def test_every_check_is_called(self):
        checks = {value for name, value in vars(doctor).items() if name.startswith("check_")}
        assert set(doctor.CHECKS) == checks
