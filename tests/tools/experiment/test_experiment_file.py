"""An experiment file means what it says, or says what is wrong."""

import json
from datetime import date
from pathlib import Path

import pytest

from nnunet_dvcl import trainers
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.experiment.experiment_file import (
    Configuration,
    Experiment,
    NewSplits,
    ReportOptions,
    Row,
    read_experiment,
)
from nnunet_dvcl.tools.experiment.runs import all_runs
from nnunet_dvcl.trainers.base.config import check_ssl

ROOT = Path(__file__).parents[3]


def test_what_a_file_says(write):
    experiment = read_experiment(write(seeds=[0, 2], devices=["cuda:0", "cuda:0"], report={"tolerance_mm": 2}))
    assert (experiment.name, experiment.dataset, experiment.plans) == ("trial", "901", "nnUNetPlans")
    (configuration,) = experiment.configurations
    assert (configuration.name, configuration.base) == ("2d_small", "2d_tiny")
    assert dict(configuration.values) == {"batch_size": "3", "ssl.num_epochs": "2"}
    assert [(a.name, a.share, a.count) for a in experiment.splits.labeled] == [
        ("50pct", 0.5, None),
        ("100pct", 1, None),
    ]
    assert [(row.name, row.labeled) for row in experiment.rows] == [("nnUNetTrainer", None), ("DVCL", ("50pct",))]
    assert experiment.seeds == (0, 2)
    assert experiment.devices == ("cuda:0", "cuda:0")
    assert experiment.report.tolerance == 2


def test_runs_can_be_keys_whatever_their_values(write):
    values = {"patch_size": [16, 16], "architecture.arch_kwargs.features_per_stage": [4, 8, 16]}
    configurations = {"2d_small": {"from": "2d_tiny", "set": values}}
    runs = all_runs(read_experiment(write(configurations=configurations)))
    assert len(set(runs)) == len(runs)
    assert runs[0].assignments[0] == "patch_size=[16, 16]"


def test_plain_configurations_and_counts(write):
    experiment = read_experiment(
        write(configurations=["2d", "3d_fullres"], splits={"labeled": [4]}, trainers="nnUNetTrainer")
    )
    assert [c.name for c in experiment.configurations] == ["2d", "3d_fullres"]
    assert (experiment.splits.labeled[0].count, experiment.splits.labeled[0].name) == (4, "4cases")


def test_splits_that_are_there(write):
    splits = {"keep": {"few": [0, 1], "all": 2}, "test": "imagesTs"}
    experiment = read_experiment(write(splits=splits, trainers=[{"trainer": "nnUNetTrainer", "labeled": "few"}]))
    assert [(a.name, a.folds) for a in experiment.splits.labeled] == [("few", (0, 1)), ("all", (2,))]
    assert experiment.splits.test == "imagesTs"
    assert experiment.rows[0].labeled == ("few",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"traners": []}, r"Unknown key traners\. Did you mean trainers\?"),
        ({"trainers": None, "traners": []}, r"Unknown key traners\. Did you mean trainers\?"),
        ({"dataset": None}, "The key dataset is missing"),
        ({"dataset": "Hippocampus"}, "dataset is 'Hippocampus', expected a data set's number or name"),
        ({"splits": {"labeled": ["10%"], "fold": 3}}, r"Unknown key splits\.fold\. Did you mean splits\.folds\?"),
        ({"splits": {"labeled": [0.1]}}, r"splits\.labeled\[0\] is 0\.1, expected a share such as 10%"),
        ({"splits": {"labeled": ["110%"]}}, "is '110%', expected a share"),
        ({"splits": {"labeled": ["10%", "10%"]}}, "twice"),
        ({"splits": {"labeled": []}}, "expected at least one entry"),
        ({"splits": {"labeled": [2], "test": 1.5}}, r"splits\.test is 1\.5, expected a number above 0, below 1"),
        ({"splits": {"labeled": [2], "folds": 3, "use": [3]}}, r"use has 3, but there are only the folds 0 to 2"),
        ({"splits": {"labeled": [2], "stratify": 1}}, r"stratify is 1, expected true or false"),
        ({"splits": {"keep": {"few": [0]}, "labeled": [2]}}, r"Unknown key splits\.labeled"),
        ({"splits": {"keep": {"few": [0]}, "test": 0.2}}, r"splits\.test is 0\.2, expected imagesTs or nothing"),
        ({"configurations": {"small": {"set": {"batch_size": 2}}}}, "key from has to name a configuration"),
        ({"configurations": {"a__b": {}}}, "expected a name of letters"),
        ({"configurations": {"2d": {"from": "2d", "set": {"ssl.seed": 1}}}}, "name the seeds under the key seeds"),
        ({"configurations": {"a": {"from": "2d", "set": {"x": date(2024, 1, 1)}}}}, "value that JSON cannot hold"),
        ({"seeds": [0, True]}, r"seeds\[1\] is True, expected a whole number of at least 0"),
        ({"trainers": ["a__b"]}, r"trainers\[0\] is 'a__b', expected a name of letters"),
        ({"trainers": [{"trainer": "T", "name": "s", "selftrain": None}]}, r"selftrain is None, expected a mapping"),
        ({"environment": {1: "f"}}, "the key 1 of environment is 1, expected text"),
        ({"devices": ["gpu"]}, r"devices\[0\] is 'gpu', expected cpu, mps, cuda"),
        ({"trainers": [{"name": "x"}]}, r"The key trainers\[0\]\.trainer is missing"),
        ({"trainers": [{"trainer": "T", "set": {"batch_size": 2}}]}, "give it a name of its own"),
        (
            {"trainers": [{"trainer": "T", "name": "s", "selftrain": {"ignore_uncertain": 0.2}}]},
            r"trainers\[0\]\.selftrain\.ignore_uncertain is 0\.2, expected a number of at least 0\.5",
        ),
        ({"trainers": ["T", {"trainer": "U", "name": "T"}]}, "Two entries of trainers are called T"),
        ({"trainers": [{"trainer": "T", "labeled": ["30%"]}]}, "labeled: 30pct, but splits has 50pct, 100pct"),
        (
            {"report": {"baseline": "nnUNetTrainerX"}},
            r"report\.baseline is nnUNetTrainerX, expected one of the trainers",
        ),
        ({"report": {"tolerance_mm": 0}}, r"tolerance_mm is 0, expected a number above 0"),
    ],
)
def test_what_cannot_be_is_named(write, changes, message):
    with pytest.raises(UserError, match=message):
        read_experiment(write(**changes))


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*/*.yaml")), ids=lambda file: file.stem)
def test_the_examples_are_experiments(file):
    experiment = read_experiment(file)
    assert len(experiment.seeds) == 3
    assert experiment.report.baseline in {row.name for row in experiment.rows}
    assert {row.trainer for row in experiment.rows} <= set(trainers.__all__)
    for values in (part.values for part in (*experiment.configurations, *experiment.rows)):
        check_ssl({key.removeprefix("ssl."): json.loads(value) for key, value in values if key.startswith("ssl.")})


def test_the_page_of_the_keys_has_each_of_them():
    page = (ROOT / "docs/reference/experiment-file.md").read_text()
    for part in (Experiment, Configuration, NewSplits, Row, ReportOptions):
        for name, field in part.model_fields.items():
            if not field.exclude:
                key = field.alias or name
                assert f"\n| `{key}` | " in page, key


@pytest.mark.parametrize(("text", "message"), [("a: [", "not valid YAML"), ("- a", "must hold 'key: value' lines")])
def test_no_experiment(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_experiment(file)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_experiment(tmp_path / "none.yaml")
