"""docs/reference/faults.md names tests that exist, and every test of this folder."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/faults.md").read_text()
ROWS = [row for row in re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", PAGE, re.MULTILINE) if row[0] != "Fault"]
ABOUT_THE_TESTS = {"test_the_watch_sees"}


@cache
def defined_tests(file: Path) -> set[str]:
    return {
        n.name for n in ast.parse(file.read_text()).body if isinstance(n, ast.FunctionDef) and n.name[:5] == "test_"
    }


def named(cell: str) -> list[tuple[str, str]]:
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", cell)


@pytest.mark.parametrize("fault", ROWS, ids=lambda row: row[0])
def test_each_fault_has_tests_that_exist(fault):
    _, behavior, cell = fault
    assert behavior
    assert named(cell), "no test"
    assert re.sub(r"`tests/[\w/]+\.py::\w+`", "", cell).strip(", ") == ""
    for file, test in named(cell):
        assert test in defined_tests(ROOT / file), test


def test_each_test_of_this_folder_is_on_the_page():
    here = {
        (f"tests/faults/{file.name}", test)
        for file in Path(__file__).parent.glob("test_*.py")
        for test in defined_tests(file)
    }
    own = {(f"tests/faults/{Path(__file__).name}", test) for test in defined_tests(Path(__file__))}
    listed = {pair for *_, cell in ROWS for pair in named(cell)}
    assert {test for _, test in here - own - listed} == ABOUT_THE_TESTS


def test_every_row_of_the_page_is_checked():
    lines = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| Fault")]
    assert len(ROWS) == len(lines) > 30
