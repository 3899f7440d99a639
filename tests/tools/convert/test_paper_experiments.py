"""The files in experiments/: they can be read, and divide the cases as their table says."""

import re
from pathlib import Path

import pytest

from nnunet_dvcl import trainers
from nnunet_dvcl.cli import _parser

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "experiments"
FILES = sorted(FOLDER.glob("*.yaml"))
# labeled cases of the converted data set; train, val, test; labeled and withheld for each amount
SIZES = {
    "flare22_10pct": (100, 14, 14, [(42, 0)]),
    "flare22_50pct": (100, 14, 14, [(42, 0)]),
    "amos": (300, 60, 60, [(18, 162), (90, 90)]),
    "mmwhs": (20, 4, 4, [(1, 11), (6, 6)]),
    "btcv": (30, 6, 6, [(2, 16), (9, 9)]),
}

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def test_there_is_a_file_for_each_row_of_the_table():
    rows = re.findall(r"^\| `(\w+)\.yaml` \| (\d+) \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == {file.stem for file in FILES} == set(SIZES)
    for name, number in rows:
        assert f"\ndataset: {number}\n" in (FOLDER / f"{name}.yaml").read_text()


@every_file
def test_the_conversion_that_it_names_parses(file):
    (command,) = re.findall(r"^# nnunet_dvcl (convert .+)$", file.read_text(), re.MULTILINE)
    arguments = _parser().parse_args(command.split())
    assert file.stem.startswith(arguments.dataset)
    assert f"\ndataset: {arguments.d}\n" in file.read_text()


@every_file
def test_it_is_an_experiment_file_with_our_trainers(file):
    experiments = pytest.importorskip("nnunet_dvcl.tools.experiment.experiment_file")
    experiment = experiments.read_experiment(file)
    assert {row.trainer for row in experiment.rows} <= set(trainers.__all__)
    assert experiment.seeds == (0, 1, 2)


@every_file
def test_it_divides_the_cases_as_the_table_says(file):
    read_experiment = pytest.importorskip("nnunet_dvcl.tools.experiment.experiment_file").read_experiment
    make_splits = pytest.importorskip("nnunet_dvcl.tools.split.draw").make_splits
    options = read_experiment(file).splits
    num_cases, val, test, amounts = SIZES[file.stem]
    cases = {f"case_{i:03d}": ["organ"] for i in range(num_cases)}
    for amount, sizes in zip(options.labeled, amounts, strict=True):
        splits = make_splits(
            cases,
            ["organ"],
            labeled=amount.share,
            count=amount.count,
            unlabeled=options.unlabeled,
            test=options.test,
            num_folds=options.num_folds,
            seed=options.seed,
        )
        (fold,) = (splits.folds[number] for number in options.use)
        assert (len(fold["val"]), len(splits.test)) == (val, test)
        assert (len(fold["train"]), len(fold["unlabeled"])) == sizes
