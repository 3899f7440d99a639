"""What tests share: the data set of tiny_data.py and trainers on it, commands that start soon."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from small_values import SMALL
from tiny_data import TinyDataset, add_cascade, change_labels, make_tiny, preprocess_scans
from warm_start import server, small_pictures


def pytest_configure() -> None:
    small_pictures()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files first: at the end one of them would leave the other processes without work."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """``made_once(name, make)``: the folder that ``make(folder)`` has filled, for all processes of pytest-xdist.

    The one that needs it first makes it, the others wait. Read only.
    """
    from nnunet_dvcl.lock import locked

    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def get(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = base / f"once_{name}", base / f"once_{name}.done"
        with locked(folder.with_suffix(".lock")):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[str]]]:
    """``warm("nnUNetv2_train", ...)``: a command line that does the same and starts in a second. See warm_start.py."""
    with server(tmp_path_factory.mktemp("warm")) as warm:
        yield warm


@pytest.fixture
def warm_commands(warm: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that our tools run start in a second."""
    from nnunet_dvcl.tools.running.command import Command

    monkeypatch.setattr(Command, "program", lambda words: warm(*words))


@pytest.fixture(scope="session")
def tiny_originals(made_once: Callable) -> Callable[[str], TinyDataset]:
    """Label mode -> the data set, made when it is first asked for."""

    @cache
    def get(label_mode: str) -> TinyDataset:
        if label_mode == "labels":
            return TinyDataset(made_once("tiny_labels", make_tiny))
        labels = get("labels")

        def make(folder: Path) -> None:
            shutil.copytree(labels.root, folder, dirs_exist_ok=True)
            change_labels(TinyDataset(folder), label_mode)

        return TinyDataset(made_once(f"tiny_{label_mode}", make))

    return get


@pytest.fixture(scope="session")
def _tiny_original(tiny_originals: Callable[[str], TinyDataset]) -> TinyDataset:
    return tiny_originals("labels")


@pytest.fixture
def label_mode() -> str:
    """One of `LABEL_MODES`; parametrize it to have `tiny_dataset` in another."""
    return "labels"


@pytest.fixture
def tiny_dataset(
    tiny_originals: Callable[[str], TinyDataset], label_mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TinyDataset]:
    """The test's own copy, to modify at will; nnU-Net's environment variables name it."""
    tiny = TinyDataset(tmp_path / "tiny")
    shutil.copytree(tiny_originals(label_mode).root, tiny.root)
    tiny.results.mkdir()
    for name, value in tiny.env.items():
        monkeypatch.setenv(name, value)
    return tiny


@pytest.fixture(scope="session")
def _cascade_original(_tiny_original: TinyDataset, made_once: Callable) -> TinyDataset:
    """The data set with ``3d_lowres_tiny`` (spacing 1.5) and ``cascade_tiny``, preprocessed by nnU-Net itself."""

    def make(folder: Path) -> None:
        shutil.copytree(_tiny_original.root, folder, dirs_exist_ok=True)
        add_cascade(TinyDataset(folder))

    return TinyDataset(made_once("cascade", make))


@pytest.fixture
def cascade_dataset(tiny_dataset: TinyDataset, _cascade_original: TinyDataset) -> TinyDataset:
    """`tiny_dataset` with ``3d_lowres_tiny`` and ``cascade_tiny``."""
    lowres = "nnUNetPlans_3d_lowres_tiny"
    shutil.copytree(_cascade_original.preprocessed / lowres, tiny_dataset.preprocessed / lowres)
    tiny_dataset.write_plans(_cascade_original.plans)
    return tiny_dataset


@pytest.fixture(scope="session")
def with_scans(tiny_originals: Callable, made_once: Callable) -> Callable[[str], TinyDataset]:
    """Label mode -> the data set with its scans preprocessed for 2d and 3d_fullres. Shared by all tests: read only."""

    @cache
    def get(label_mode: str) -> TinyDataset:
        def make(folder: Path) -> None:
            shutil.copytree(tiny_originals(label_mode).root, folder, dirs_exist_ok=True)
            tiny = TinyDataset(folder)
            with mock.patch.dict(os.environ, tiny.env):
                preprocess_scans(tiny)

        return TinyDataset(made_once(f"scans_{label_mode}", make))

    return get


@pytest.fixture
def build_trainer(tiny_dataset, with_scans, label_mode):
    """``build_trainer(TrainerClass, configuration="3d_tiny", fold="all", continue_training=False, **ssl)``, on CPU."""
    import torch

    made = with_scans(label_mode)
    if tiny_dataset.read_what_scans_depend_on() == made.read_what_scans_depend_on():
        for folder in made.preprocessed.glob("*_unlabeled"):
            shutil.copytree(folder, tiny_dataset.preprocessed / folder.name, dirs_exist_ok=True)
    preprocess_scans(tiny_dataset)

    def build(trainer_class, configuration="3d_tiny", fold="all", continue_training=False, **ssl):
        plans = tiny_dataset.plans
        plans["configurations"][configuration]["ssl"] = SMALL | ssl
        plans["continue_training"] = continue_training
        return trainer_class(plans, configuration, fold, tiny_dataset.dataset_json, torch.device("cpu"))

    return build


@pytest.fixture
def start(build_trainer):
    """A trainer after ``on_train_start``, ready for its first epoch; its loaders are in this process."""

    def start_trainer(*args, **kwargs):
        trainer = build_trainer(*args, **kwargs)
        trainer.on_train_start()
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        return trainer

    return start_trainer


@pytest.fixture
def as_numpy(tiny_dataset):
    """The labeled folder of 3d_fullres in nnU-Net's NumPy format, unpacked, as it is in training."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy

    folder = tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres"
    source = nnUNetDatasetBlosc2(str(folder))
    for case in source.identifiers:
        data, seg, _, properties = source.load_case(case)
        nnUNetDatasetNumpy.save_case(data[:], seg[:], properties, str(folder / case))
        np.save(folder / f"{case}.npy", data[:])
        np.save(folder / f"{case}_seg.npy", seg[:])
    for file in folder.glob("*.b2nd"):
        file.unlink()
    return nnUNetDatasetNumpy


@pytest.fixture
def nnunet_trains(monkeypatch) -> Callable[[str], dict]:
    """``nnunet_trains("nnUNetv2_train ...")``: what nnU-Net's own command makes of the line, by argument."""
    import inspect
    import shlex

    import torch
    from nnunetv2.run import run_training

    call = inspect.signature(run_training.run_training).bind
    made = []
    monkeypatch.setattr(run_training, "run_training", lambda *args, **options: made.append(call(*args, **options)))
    for name in ("set_num_threads", "set_num_interop_threads"):
        monkeypatch.setattr(torch, name, lambda number: None)

    def read(line: str) -> dict:
        monkeypatch.setattr("sys.argv", shlex.split(line))
        run_training.run_training_entry()
        return made.pop().arguments

    return read


@pytest.fixture(params=["Blosc2", "Numpy"])
def dataset_class(request, tiny_dataset):
    """nnU-Net's dataset class; the labeled folder of 3d_fullres is stored with it."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    return nnUNetDatasetBlosc2 if request.param == "Blosc2" else request.getfixturevalue("as_numpy")
