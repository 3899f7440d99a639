"""README and docs say what the code does: links, commands, keys, signatures."""

import ast
import importlib.util
import inspect
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

import nnunet_dvcl
import nnunet_dvcl.losses
import nnunet_dvcl.memory
import nnunet_dvcl.trainers
from nnunet_dvcl import distributed, train
from nnunet_dvcl.cli import _parser
from nnunet_dvcl.tools.configure import _parse
from nnunet_dvcl.trainers.base.config import check_ssl, known_options
from nnunet_dvcl.trainers.nnUNetTrainerDVCL_SameView import SameViewConfig

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DEFINED_ON_A_PAGE = {"nnUNetTrainerMeanTeacher", "nnUNetTrainerCopyPaste"}
OF_CONTRASTS = {"contrastive_weight", "contrastive_start", "num_anchors", "num_negatives", "num_queries"}
OF_CONTRASTS |= {"temperature", "bank_capacity", "teacher_decay", "feature_dim", "certain_entropy"}
NNUNETS = {"nnUNetTrainer", "nnUNetTrainerBN", "nnUNetTrainerNoDeepSupervision"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command in the page's bash blocks."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split("&&"):
                if words := shlex.split(command, comments=True):
                    yield words


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_nothing_is_said_twice_on_a_page(page):
    """As a merge of two versions leaves it: a line of text that comes again, two rows of a table on one thing."""
    lines = [line.strip() for line in prose(page).splitlines()]
    texts = [line for line in lines if len(line) > 60 and not line.startswith("|")]
    assert sorted(texts) == sorted(set(texts))
    for table in re.findall(r"(?:^\|.*\n)+", prose(page), re.MULTILINE):
        named = [cell for row in table.splitlines()[2:] if re.fullmatch(r"`.*`", cell := row.split("|")[1].strip())]
        assert sorted(named) == sorted(set(named))


@every_page
def test_headings_stand_alone(page):
    assert not re.findall(r"(?<!\n)\n#+ .*", prose(page).lstrip())


@every_page
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


def test_every_page_is_in_the_index():
    index = ROOT / "docs/README.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+\.md)\)", index.read_text())}
    assert not set(PAGES) - linked - {index, ROOT / "README.md"}


@every_page
def test_our_commands_parse(page):
    for words in commands(page):
        if words[0] != "nnunet_dvcl":
            continue
        try:
            arguments = _parser().parse_args(words[1:])
        except SystemExit as stop:
            pytest.fail(f"{shlex.join(words)}: exit status {stop.code}")
        for key, value in map(_parse, getattr(arguments, "assignments", [])):
            if key.startswith("ssl."):
                check_ssl({key.removeprefix("ssl."): value})


@every_page
def test_torchrun_commands_parse(page):
    for words in commands(page):
        if words[0] == "torchrun":
            arguments = get_args_parser().parse_args(words[1:])
            assert arguments.training_script == "nnunet_dvcl.train"
            assert arguments.module
            train._parser().parse_args(arguments.training_script_args)


@every_page
def test_other_commands_exist(page):
    scripts = {script.name for script in entry_points(group="console_scripts")}
    assert not set(re.findall(r"\bnnUNetv2_[a-zA-Z_]*\w", page.read_text())) - scripts
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert not set(re.findall(r"^make (\w+)|`make (\w+)", page.read_text(), re.MULTILINE)) - {
        *((target, "") for target in targets),
        *(("", target) for target in targets),
    }


@every_page
def test_trainers_and_keys_exist(page):
    text = prose(page) + "".join(blocks(page, "bash"))
    ours = {*NNUNETS, *nnunet_dvcl.trainers.__all__, *DEFINED_ON_A_PAGE}
    assert not set(re.findall(r"\bnnUNetTrainer[A-Za-z0-9]*(?:_[A-Za-z]+)*", page.read_text())) - ours
    # not the name of the page what-limits-ssl.md
    assert not set(re.findall(r"(?<!-)\bssl\.([a-z_]+)", text)) - set(known_options())


@every_page
def test_no_path_of_a_developer(page):
    assert not re.search(r"(?<![\w$])/(work|home|root|tmp)/", page.read_text())


spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


@pytest.mark.parametrize("table", generate.TABLES)
def test_generated_tables_are_what_the_trainers_say(table):
    page, text = generate.generated(table)
    assert page.read_text() == text, f"{page.name} is out of date: make docs"


def test_every_key_has_a_meaning_and_stands_there_once():
    rows = re.findall(r"^\| `(\w+)` \| `[^`]+` \| [^|]+ \| ([^|]+) \|$", generate.options_tables(), re.MULTILINE)
    own = {key for key, _ in rows}
    assert own == set().union(*(getattr(nnunet_dvcl.trainers, n).config_class.model_fields for n in generate.NAMES))
    assert all(len(meaning) >= len("epochs") for _, meaning in rows)
    # the paper's protocol, its views, learning from pseudo-labels and methods of contrast have defaults of their own
    elsewhere = {"initial_lr", "num_epochs", *SameViewConfig.__annotations__, *OF_CONTRASTS}
    assert {key for key in own if [k for k, _ in rows].count(key) > 1} == elsewhere


def api_headings(module) -> list[str]:
    page = (ROOT / "docs/reference/python-api.md").read_text()
    section = page.partition(f"\n## {module.__name__}\n")[2].partition("\n## ")[0]
    return re.findall(r"^### `(.+)`$", section, re.MULTILINE)


def public_names(module) -> set[str]:
    if hasattr(module, "__all__"):
        return set(module.__all__)
    defined = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    return {name for name in defined if not name.startswith("_")}


def arguments(call: str) -> list[tuple[str, object]]:
    """The parameters of a call as the page writes it, with their defaults; ``...`` for none."""
    spec = ast.parse(f"def {call}: ...").body[0].args
    defaults = [...] * (len(spec.args) - len(spec.defaults)) + [ast.literal_eval(default) for default in spec.defaults]
    named = [(arg.arg, default) for arg, default in zip(spec.args, defaults, strict=True)]
    return named + ([(spec.kwarg.arg, ...)] if spec.kwarg else [])


@pytest.mark.parametrize(
    "module",
    [nnunet_dvcl.losses, nnunet_dvcl.memory, nnunet_dvcl.voxels.entropy_split, nnunet_dvcl.voxels.draws, distributed],
)
def test_the_api_page_has_every_signature(module):
    headings = api_headings(module)
    assert {heading.partition("(")[0] for heading in headings} == public_names(module)
    for heading in headings:
        signature = inspect.signature(getattr(module, heading.partition("(")[0]))
        expected = [(p.name, ... if p.default is p.empty else p.default) for p in signature.parameters.values()]
        assert arguments(heading) == expected, heading


def test_the_example_of_the_api_page_runs():
    (example,) = blocks(ROOT / "docs/reference/python-api.md", "python")
    exec(example, {})


# --------------------------------------------------------------------------- equations

EQUATION_TESTS = ROOT / "tests/trainers/test_equations.py"


def equation_rows() -> dict[int, tuple[list[str], list[str]]]:
    """Equation -> functions and tests, in the order of the page."""
    page = (ROOT / "docs/reference/equations.md").read_text()
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    assert len(rows) == len({number for number, *_ in rows}), "an equation is there twice"
    return {int(number): tuple(re.findall(r"`([^`]+)`", cell) for cell in cells) for number, *cells in rows}


def equations_named(text: str) -> set[int]:
    """Those of "Eq. 2", "Eq. 7 and 9", "Eq. 14, 16-19"."""
    numbers = set()
    for listed in re.findall(r"Eq\. (\d+(?:(?:-|, | and )\d+)*)", text):
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", listed):
            numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def test_every_equation_is_on_the_equations_page():
    assert list(equation_rows()) == list(range(1, 20))


@pytest.mark.parametrize("number", range(1, 20))
def test_the_functions_of_an_equation_name_it(number):
    functions, _ = equation_rows()[number]
    assert functions
    for name in functions:
        package, *path = name.split(".")
        assert package == "nnunet_dvcl"
        owners = [nnunet_dvcl]
        for part in path:
            owners.append(getattr(owners[-1], part))
        documented = [owner for owner in owners[2:] if getattr(owner, "__doc__", None)]
        assert number in equations_named("\n".join(inspect.getdoc(owner) for owner in documented)), name


def test_the_tests_of_the_equations_are_on_the_page():
    defined = re.findall(r"^def (test_equation_\w+)\(", EQUATION_TESTS.read_text(), re.MULTILINE)
    listed = [(number, test) for number, (_, tests) in equation_rows().items() for test in tests]
    assert sorted(test for _, test in listed) == sorted(defined)
    assert all(test.startswith(f"test_equation_{number:02}_") for number, test in listed)
    assert {number for number, _ in listed} == set(range(1, 20))
