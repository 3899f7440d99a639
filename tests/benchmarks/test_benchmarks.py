"""Every benchmark runs, and compares things that give the same values. No time is asserted."""

import json
import math

import pytest

from benchmarks import __main__ as command
from benchmarks import epochs, start_up
from benchmarks.compare import CPU
from benchmarks.parts import search_over_faiss
from benchmarks.report import write_report
from benchmarks.scaling import Scaling
from benchmarks.sizes import SIZES
from benchmarks.steps import METHODS, method_over_supervised
from nnunet_dvcl import trainers

NAMES = tuple(name for name in command.benchmarks_of(SIZES["tiny"], CPU, 1) if name != "start-up-found")


@pytest.mark.parametrize("name", NAMES)
def test_each_comparison_measures_both_sides(name, monkeypatch):
    monkeypatch.setattr(epochs, "STEPS", 2)
    result = command.benchmarks_of(SIZES["tiny"], CPU, 1)[name]()
    assert result.size == "tiny"
    assert math.isfinite(result.ratio)
    assert result.ratio > 0


def test_the_other_start_up_is_of_nnunets_other_trainer(monkeypatch):
    """Two trainings that start from nothing are enough: those of start-up."""
    trained = []
    monkeypatch.setattr(start_up.subprocess, "run", lambda words, **_: trained.append(words[words.index("-tr") + 1]))
    result = command.benchmarks_of(SIZES["tiny"], CPU, 1)["start-up-found"]()
    assert set(trained) == {"nnUNetTrainerDVCL", "nnUNetTrainer_10epochs"}
    assert "nnUNetTrainer_10epochs" in result.name


def test_the_dense_head_gives_the_same_values():
    result = command.benchmarks_of(SIZES["tiny"], CPU, 1)["dense-head"]()
    assert result.notes["largest difference of a term"] < 1e-6


@pytest.mark.parametrize("name", ["nnUNetTrainerMT", "nnUNetTrainerDVCL", "nnUNetTrainerDTC"])
def test_a_method_is_measured_beside_its_passes(name):
    result = method_over_supervised(name, SIZES["tiny"], CPU, 1)
    assert name in METHODS
    assert result.notes["passes"] == getattr(trainers, name).passes.steps
    assert result.target == pytest.approx(1.15 * result.notes["passes"])
    assert result.ratio > 0


def test_faiss_finds_the_same():
    result = search_over_faiss(64, 512, 1)
    assert result.notes == {"same neighbors": 1.0, "same relevance": 1.0}


def test_the_report_has_table_numbers_and_pictures(tmp_path):
    comparison = search_over_faiss(16, 128, 2)
    scaling = Scaling("search", "queries", [1, 10, 100, 1000], [1.0, 1.0, 10.0, 100.0], [0, 5, 5, 5])
    assert scaling.slope(scaling.seconds) == pytest.approx(1.0)
    assert scaling.slope(scaling.peak_bytes) == pytest.approx(0.0)
    write_report(tmp_path, [comparison], [scaling], CPU)
    assert {file.name for file in tmp_path.iterdir()} == {
        "benchmarks.json",
        "benchmarks.md",
        "scaling.png",
        "scaling.svg",
    }
    content = json.loads((tmp_path / "benchmarks.json").read_text())
    assert content["comparisons"][0]["ratio"] == comparison.ratio
    assert content["scalings"][0]["time_slope"] == pytest.approx(1.0)
    table = (tmp_path / "benchmarks.md").read_text()
    assert f"{comparison.ratio:.3f}" in table
    assert "| search | queries | 1 | 1000 | 1.00 | 0.00 |" in table


def test_one_command_runs_what_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["benchmarks", "--sizes", "tiny", "--only", "selection", "--repeats", "1", "-o", str(tmp_path)]
    )
    command.main()
    assert "one argmax" in capsys.readouterr().out
