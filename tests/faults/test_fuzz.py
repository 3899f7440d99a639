"""Any split file, any assignment, any name: a UserError at worst, and no path that leaves nnU-Net's folders."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dvcl.data import UnlabeledDataset, preprocess_unlabeled
from nnunet_dvcl.data.folders import find_plans_file
from nnunet_dvcl.data.raw import find_unlabeled_images
from nnunet_dvcl.data.splits import validation_cases, withheld_cases
from nnunet_dvcl.data.storage import complete_cases
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.files import visible_files
from nnunet_dvcl.tools.configure import configure
from nnunet_dvcl.trainers import nnUNetTrainerSupervised


def fuzz(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# ---------------------------------------------------------------- what is opened

ONE_PATH = {"open", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}
TWO_PATHS = {"os.rename", "os.symlink", "os.link"}
ROOT = Path(__file__).parents[2]
INSTALLED = tuple(str(Path(path).resolve()) for path in (sys.prefix, sys.base_prefix, ROOT / "nnunet_dvcl"))
_seen: list[str] | None = None


def _watch(event: str, arguments: tuple) -> None:
    if _seen is not None:
        paths = arguments[: 2 if event in TWO_PATHS else int(event in ONE_PATH)]
        _seen.extend(os.fsdecode(path) for path in paths if isinstance(path, (str, bytes)))


sys.addaudithook(_watch)


@contextmanager
def nothing_but(folder: Path) -> Iterator[None]:
    """Only files below `folder` are looked at, written or removed in this block (beside Python's own imports)."""
    global _seen
    _seen = []
    try:
        yield
    finally:
        paths, _seen = _seen, None
    for path in paths:
        real = os.path.realpath(path) if "\0" not in path else path
        assert real.startswith((str(folder.resolve()), *INSTALLED)), path


def test_the_watch_sees(tmp_path):
    for touch in (lambda: Path("/etc/hostname_").read_text(), lambda: os.listdir("/"), lambda: os.rename("x", "y")):
        with pytest.raises(AssertionError), nothing_but(tmp_path), suppress(OSError):
            touch()


# ---------------------------------------------------------------- strategies

ODD = [
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a\0b",
    "x" * 5000,
    "case_0/../case_1",
    "\ud800",
    "Ωß 中",
    "\n",
]
identifiers = st.sampled_from([*(f"case_{i}" for i in range(6)), *ODD]) | st.text(max_size=4)
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
anything = st.recursive(
    plain, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3), max_leaves=6
)
roles = st.lists(identifiers, max_size=4) | anything
fold = st.fixed_dictionaries(
    {}, optional={"train": roles, "val": roles, "unlabeled": roles, "unlabelled": roles, "other": anything}
)
split_files = st.one_of(
    st.lists(fold | anything, max_size=3).map(json.dumps),
    anything.map(json.dumps),
    st.sampled_from(["", "[" * 100_000, "[" + "1" * 5000 + "]", '{"a": NaN}', "\ufeff[]"]),
).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=20)


# ---------------------------------------------------------------- splits


@fuzz(200)
@example(content=b'[{"train": ["case_0"], "val": ["../../etc/passwd"]}]', number=0)
@given(content=split_files, number=st.integers(0, 3))
def test_any_split_file(tmp_path, content, number):
    labeled = [f"case_{i}" for i in range(6)]
    file = tmp_path / "splits_final.json"
    file.write_bytes(content)
    for read in (withheld_cases, validation_cases):
        with nothing_but(tmp_path), suppress(UserError):
            assert set(read(str(file), number, labeled)) <= set(labeled)


@fuzz(60)
@given(content=split_files)
def test_any_split_file_in_training(tiny_dataset, build_trainer, trained_once, content):
    (tiny_dataset.preprocessed / "splits_final.json").write_bytes(content)
    trainer = trained_once(lambda: build_trainer(nnUNetTrainerSupervised, fold=0))
    with nothing_but(tiny_dataset.root), suppress(UserError):
        train, val = trainer.do_split()
        assert {*train, *val} <= set(tiny_dataset.labeled)


@pytest.fixture
def trained_once() -> Callable:
    made = []

    def once(make):
        if not made:
            made.append(make())
            made[0].initialize()
        return made[0]

    return once


# ---------------------------------------------------------------- configure

KEYS = ["batch_size", "patch_size", "spacing", "data_identifier", "normalization_schemes", "resampling_fn_data_kwargs"]
KEYS += ["inherits_from", "architecture", "ssl", "ssl.", "ssl.num_epochs", "ssl.initial_lr", "ssl.seed", ""]
KEYS += [f"architecture.arch_kwargs.{key}" for key in ("strides", "n_stages", "features_per_stage", "dropout_op", "")]
VALUES = ["1e400", "9" * 5000, "[" * 100_000, "NaN", "-0", "[16, 16, 16]", "[[1, 1, 1], [2, 2, 2], [2, 2, 2]]", *ODD]
assignments = st.builds(
    "{}={}".format,
    st.sampled_from(KEYS) | st.text(max_size=8),
    st.sampled_from(VALUES) | anything.map(json.dumps) | st.integers(1, 9).map(str) | st.text(max_size=8),
)


@fuzz(150)
@given(assigned=st.lists(assignments | st.text(max_size=8), min_size=1, max_size=3))
def test_any_assignment(tiny_dataset, assigned):
    plans_file = tiny_dataset.preprocessed / "nnUNetPlans.json"
    before = plans_file.read_bytes()
    files = set(visible_files(tiny_dataset.preprocessed))
    try:
        with nothing_but(tiny_dataset.root):
            configure("901", "3d_tiny", "own", "nnUNetPlans", assigned)
    except UserError:
        assert plans_file.read_bytes() == before
    else:
        own = PlansManager(json.loads(plans_file.read_text())).get_configuration("own")
        assert Path(own.data_identifier).name == own.data_identifier
        assert all(0 < size < 10**6 for size in own.spacing)
    finally:
        plans_file.write_bytes(before)
    assert set(visible_files(tiny_dataset.preprocessed)) == files


names = (
    st.sampled_from([*ODD, "Dataset901_Tiny/../Dataset901_Tiny", "nnUNetPlans", "901", "../nnUNetPlans"]) | st.text()
)


@fuzz(150)
@given(dataset=names | st.text().map("Dataset{}".format), plans=names, name=names, configuration=names)
def test_any_name(tiny_dataset, dataset, plans, name, configuration):
    before = (tiny_dataset.preprocessed / "nnUNetPlans.json").read_bytes()
    for arguments in ((dataset, plans, "3d_tiny", "own"), ("901", "nnUNetPlans", configuration, name)):
        with nothing_but(tiny_dataset.root), suppress(UserError):
            configure(arguments[0], arguments[2], arguments[3], arguments[1], ["batch_size=3"])
            written = json.loads((tiny_dataset.preprocessed / "nnUNetPlans.json").read_text())["configurations"]
            assert not set(arguments[3]) & set("/\\\0")
            assert arguments[3] in written
    (tiny_dataset.preprocessed / "nnUNetPlans.json").write_bytes(before)


@pytest.mark.parametrize("dataset", ["901", "Dataset901_Tiny"])
@pytest.mark.parametrize("path", ["../Dataset901_Tiny/nnUNetPlans", "/etc/x", "..", ""])
def test_a_path_is_no_plans_identifier(tiny_dataset, dataset, path):
    with pytest.raises(UserError, match="is no plans identifier: expected a name, not a path"):
        find_plans_file(dataset, path)


def test_a_path_is_no_data_set(tiny_dataset):
    with pytest.raises(UserError, match="is no data set: expected a name, not a path"):
        find_plans_file("Dataset901_Tiny/../Dataset901_Tiny", "nnUNetPlans")


@pytest.mark.parametrize("key", ["data_identifier", "dataset_name"])
def test_plans_that_lead_out_of_the_folders(tiny_dataset, key):
    plans = tiny_dataset.plans
    (plans if key == "dataset_name" else plans["configurations"]["3d_fullres"])[key] = "../../elsewhere"
    tiny_dataset.write_plans(plans)
    with pytest.raises(UserError, match=rf"'\.\./\.\./elsewhere' is no {key} of the plans: expected a name"):
        preprocess_unlabeled("901", "3d_tiny", num_processes=1)
    assert not (tiny_dataset.root / "elsewhere").exists()


# ---------------------------------------------------------------- file names

file_names = st.one_of(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(["..", "../x", "a_seg", "-rf", "*", "%s", "{}", "a b", "'", "\n", "~", "CON", "x" * 240, "\udcff"]),
)


@fuzz(150)
@given(stems=st.lists(file_names, max_size=3, unique=True), ending=st.sampled_from(["_0000.nii.gz", ".nii.gz", ""]))
def test_any_file_name(tmp_path_factory, stems, ending):
    raw = tmp_path_factory.mktemp("raw")
    folder = raw / "imagesTr_unlabeled"
    folder.mkdir()
    for stem in stems:
        name = (stem + ending).replace("/", "_")
        if name not in ("", ".", ".."):
            (folder / name).touch()
    dataset_json = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    with nothing_but(raw), suppress(UserError):
        found = find_unlabeled_images(str(raw), dataset_json)
        for identifier, files in found.items():
            assert identifier == os.path.basename(identifier) not in ("", ".", "..")
            assert [Path(file).parent for file in files] == [folder]


def test_scans_with_odd_names_are_preprocessed_and_read(tiny_dataset):
    odd = ["-rf", "a b", "%s{}", "*", "'\"$x", "größe 中", "a.b", "~", "x" * 240]
    first = next(tiny_dataset.images.iterdir())
    for name in odd:
        os.link(first, tiny_dataset.images / f"{name}_0000.nii.gz")
    with nothing_but(tiny_dataset.root):
        folder = preprocess_unlabeled("901", "3d_tiny", num_processes=1)
        assert complete_cases(folder, nnUNetDatasetBlosc2) == {*tiny_dataset.scans, *odd}
        dataset = UnlabeledDataset([nnUNetDatasetBlosc2(folder)])
        for name in odd:
            assert dataset.load_case(name)[0][:].any()


def test_a_name_that_is_no_text_is_told(tiny_dataset):
    os.link(next(tiny_dataset.images.iterdir()), tiny_dataset.images / os.fsdecode(b"caf\xe9_0000.nii.gz"))
    with pytest.raises(UserError, match=r"caf\\udce9_0000\.nii\.gz: expected CASE_0000\.nii\.gz"):
        preprocess_unlabeled("901", "3d_tiny", num_processes=1)
