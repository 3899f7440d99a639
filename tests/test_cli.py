"""The command line: help without torch, each command's arguments, errors without a traceback."""

import re
import subprocess
import sys
from types import ModuleType

import pytest

from nnunet_dvcl import __version__
from nnunet_dvcl.cli import main
from nnunet_dvcl.errors import UserError

COMMANDS = (
    "convert",
    "split",
    "preprocess",
    "configure",
    "memory",
    "predict-next-stage",
    "plot",
    "export",
    "pilot",
    "experiment",
    "inspect",
    "demo",
    "trainers",
    "doctor",
)


@pytest.fixture
def fake(monkeypatch):
    """Replace one function of a module that is not to be imported; returns the list of its calls."""

    def replace(module_name: str, function: str, result=None, error: Exception | None = None) -> list[tuple]:
        calls = []

        def record(*args):
            calls.append(args)
            if error is not None:
                raise error
            return result

        module = ModuleType(module_name)
        setattr(module, function, record)
        monkeypatch.setitem(sys.modules, module_name, module)
        return calls

    return replace


def test_help_lists_every_command_with_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    for command in COMMANDS:
        # argparse puts a long name on a line of its own
        assert re.search(rf"^ +{command}\s+\w\S* \S+ \S+", output, re.MULTILINE), command


@pytest.mark.parametrize("command", [*COMMANDS, "plot curves", "plot features"])
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert f"nnunet_dvcl {command}" in capsys.readouterr().out


def test_the_parser_imports_nothing_heavy():
    code = (
        "import sys\nfrom nnunet_dvcl.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'nnunetv2', 'matplotlib', 'sklearn'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"nnunet_dvcl {__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["convert", "btcv", "folder"],
        ["convert", "-d", "501"],
        ["preprocess", "-d", "501"],
        ["configure", "-d", "501", "-c", "2d", "a=1"],
        ["split", "-d", "501"],
        ["split", "--count", "3"],
        ["export", "folder", "--network", "a"],
        ["export", "folder", "--to", "elsewhere"],
        ["plot"],
        ["plot", "curves"],
        ["inspect"],
        ["plot", "features", "-d", "501", "-c", "2d", "-tr", "nnUNetTrainerDVCL"],
        ["predict-next-stage", "-d", "501", "-tr", "nnUNetTrainerDVCL"],
        ["predict-next-stage", "-d", "501", "-f", "0"],
    ],
)
def test_what_is_missing_is_said(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "required" in capsys.readouterr().err


def test_convert(fake):
    calls = fake("nnunet_dvcl.tools.convert.raw_dataset", "convert_dataset")
    options = ["--link", "--max-unlabeled", "378", "--any-count", "--ignore-geometry"]
    assert main(["convert", "flare22", "downloads", "-d", "22"]) == 0
    assert main(["convert", "amos", "downloads", "-d", "23", *options]) == 0
    assert calls == [
        ("flare22", "downloads", 22, False, None, False, False),
        ("amos", "downloads", 23, True, 378, True, True),
    ]


@pytest.mark.parametrize("argv", [["kits", "x", "-d", "1"], ["btcv", "x", "-d", "0"], ["btcv", "x", "-d", "1000"]])
def test_convert_refuses_what_cannot_be(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["convert", *argv])
    assert stop.value.code == 2


def test_preprocess_runs_each_configuration(fake, capsys):
    calls = fake("nnunet_dvcl.data.preprocess", "preprocess_unlabeled", result="/folder")
    assert main(["preprocess", "-d", "501", "-c", "2d", "3d_fullres", "-p", "MyPlans", "-np", "3"]) == 0
    assert calls == [("501", "2d", "MyPlans", 3, False), ("501", "3d_fullres", "MyPlans", 3, False)]
    assert "/folder" in capsys.readouterr().out


def test_preprocess_takes_the_defaults_of_nnunet(fake):
    configuration = ModuleType("nnunetv2.configuration")
    configuration.default_num_processes = 7
    calls = fake("nnunet_dvcl.data.preprocess", "preprocess_unlabeled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "nnunetv2.configuration", configuration)
        assert main(["preprocess", "-d", "Dataset501_Small", "-c", "3d_fullres", "--skip-bad"]) == 0
    assert calls == [("Dataset501_Small", "3d_fullres", "nnUNetPlans", 7, True)]


@pytest.mark.parametrize("number", ["0", "-2", "two"])
def test_preprocess_refuses_an_impossible_number_of_processes(number, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["preprocess", "-d", "501", "-c", "2d", "-np", number])
    assert stop.value.code == 2
    assert number in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["-d", "501", "-c", "3d_fullres", "--name", "3d_small", "batch_size=2", "ssl.num_epochs=20"],
        ["batch_size=2", "ssl.num_epochs=20", "-d", "501", "-c", "3d_fullres", "--name", "3d_small"],
    ],
)
def test_configure_takes_its_assignments_before_or_after_the_options(argv, fake):
    calls = fake("nnunet_dvcl.tools.configure", "configure", result="/plans.json")
    assert main(["configure", *argv]) == 0
    assert calls == [("501", "3d_fullres", "3d_small", "nnUNetPlans", ["batch_size=2", "ssl.num_epochs=20"])]


def test_configure_puts_the_preset_before_what_is_given(fake, capsys):
    calls = fake("nnunet_dvcl.tools.configure", "configure", result="/plans.json")
    argv = ["configure", "-d", "501", "-c", "3d_fullres", "--name", "mine", "--preset", "paper"]
    assert main([*argv, "batch_size=3"]) == main(argv) == 0
    (*_, given), (*_, alone) = calls
    assert given == [*alone, "batch_size=3"]
    assert "patch_size=[64, 128, 128]" in alone


def test_plot_curves(fake):
    calls = fake("nnunet_dvcl.tools.plots.curves", "plot_curves")
    assert main(["plot", "curves", "a"]) == 0
    assert main(["plot", "curves", "a", "b/fold_0", "-o", "elsewhere"]) == 0
    assert main(["plot", "curves", "a", "--keys", "cps", "val_*"]) == 0
    assert calls == [
        (["a"], "./nnunet_dvcl_plots", ["*"]),
        (["a", "b/fold_0"], "elsewhere", ["*"]),
        (["a"], "./nnunet_dvcl_plots", ["cps", "val_*"]),
    ]


def test_plot_features(fake):
    calls = fake("nnunet_dvcl.tools.plots.features", "plot_features")
    needed = ["plot", "features", "-d", "501", "-c", "2d", "-f", "0", "-tr", "nnUNetTrainerDVCL"]
    options = ["-p", "Mine", "--cases", "a", "b", "-chk", "best", "-device", "cuda", "--voxels", "9", "-o", "elsewhere"]
    assert main(needed) == 0
    assert main([*needed, "nnUNetTrainerCPS", *options, "-f", "all"]) == 0
    dvcl, cps = "nnUNetTrainerDVCL", "nnUNetTrainerCPS"
    assert calls == [
        ("501", "2d", "0", [dvcl], "./nnunet_dvcl_plots", "nnUNetPlans", [], [], None, 2000),
        ("501", "2d", "all", [dvcl, cps], "elsewhere", "Mine", ["a", "b"], ["best"], "cuda", 9),
    ]


@pytest.mark.parametrize("option", [["-f", "first"], ["-f", "-1"], ["-device", "tpu"], ["--voxels", "0"]])
def test_plot_features_refuses_what_cannot_be(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plot", "features", "-d", "501", "-c", "2d", "-f", "0", "-tr", "nnUNetTrainerDVCL", *option])
    assert stop.value.code == 2


@pytest.mark.parametrize(("gpu", "device"), [(True, ""), (False, " -device cpu")])
def test_export(fake, capsys, monkeypatch, gpu, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    module = ModuleType("nnunet_dvcl.tools.export.model")
    module.networks_meant, calls = {"a": "A", "both": "AB"}.get, []
    module.export_model = lambda *args: calls.append(args)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "nnunet_dvcl.tools.export.model", module)
        assert main(["export", "model", "--network", "a", "--to", "out"]) == 0
        assert capsys.readouterr().out.endswith(f"-m out -f 0{device}\n")
        options = ["-f", "1", "-chk", "best", "--no-compare", "-device", "cpu"]
        assert main(["export", "model", "--network", "both", "--to", "out", *options]) == 0
        assert capsys.readouterr().out.endswith(f"-m out -f 0 1{device}\n")
    assert calls == [
        ("model", "a", "out", None, "checkpoint_final.pth", True, None),
        ("model", "both", "out", "1", "best", False, "cpu"),
    ]


def test_demo(fake):
    calls = fake("nnunet_dvcl.tools.demo.run", "run_demo")
    assert main(["demo"]) == 0
    assert main(["demo", "-o", "elsewhere", "--quick"]) == 0
    assert calls == [("./nnunet_dvcl_demo", False), ("elsewhere", True)]


def test_doctor_decides_the_exit_status(fake):
    fake("nnunet_dvcl.tools.doctor", "main", result=1)
    assert main(["doctor"]) == 1


def test_a_user_error_is_a_message_not_a_traceback(fake, capsys):
    fake("nnunet_dvcl.tools.demo.run", "run_demo", error=UserError("the folder is full. Make room"))
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "Error: the folder is full. Make room\n"


def test_another_error_is_not_hidden(fake):
    fake("nnunet_dvcl.tools.demo.run", "run_demo", error=ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["demo"])
