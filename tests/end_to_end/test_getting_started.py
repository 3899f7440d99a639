"""The page that one reads first: its commands run, and print what it shows."""

import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from small_values import SMALL

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs/getting-started.md").read_text()
FIRST_RUN, _, _ = PAGE.partition("## 7. Train in earnest")
TINY = ", shape=(16, 16, 16))"  # instead of 32 x 40 x 48 voxels
FOLDER_TREE = ("nnUNet_raw/", "├", "│", "└", "    ")
INSTALLING = ("git", "cd", "pip", "export", "mkdir")


def commands_and_output(page: str) -> Iterator[tuple[list[list[str]], list[str]]]:
    """The words of the commands of each bash block, and the lines of the text blocks up to the next one."""
    for typed, below in re.findall(r"^```bash\n(.*?)\n```(.*?)(?=^```bash|\Z)", page, re.DOTALL | re.MULTILINE):
        commands = [shlex.split(line, comments=True) for line in typed.replace("&&", "\n").splitlines()]
        shown = "".join(re.findall(r"^```text\n(.*?)^```", below, re.DOTALL | re.MULTILINE))
        yield commands, [line for line in shown.splitlines() if line and not line.startswith(FOLDER_TREE)]


ANY_OF = {
    r"/data/": r"\S*/",
    r"\.\.\.": r".*",
    r"about \d+ \w+ in": r"about [\d.]+ (?:s|min|h) in",
    r"-?\d+(?:\.\d+)?": r"(?:-?[\d.]+(?:e-?\d+)?|nan)",
}
"""What stands on the page, and what may be printed instead."""


def pattern(line: str) -> str:
    """What a line has to be like, with or without nnU-Net's time before it."""
    parts = re.split(f"({'|'.join(ANY_OF)})", line.rstrip())
    for place in range(1, len(parts), 2):
        parts[place] = next(instead for shown, instead in ANY_OF.items() if re.fullmatch(shown, parts[place]))
    parts[::2] = map(re.escape, parts[::2])
    return rf"^(?:[\d-]+ [\d:.]+: )?{''.join(parts)}\s*$"


def as_typed(words: list[str], raw: str) -> list[str]:
    """With the shell's variables; the checkout's ``nnunet_dvcl``; the phantom tiny."""
    words = [word.replace("$nnUNet_raw", raw) for word in words]
    if words[0] == "python":
        return [sys.executable, "-c", re.sub(r"\)$", TINY, words[2])]
    return words


def narrow(files: Iterable[Path]) -> None:
    """Networks that the planner made for a GPU, and contrast of that size, take minutes for the page's steps here."""
    (file,) = files
    plans = json.loads(file.read_text())
    configuration = plans["configurations"]["3d_fullres"]
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [4] * arguments["n_stages"]
    configuration["ssl"] = {
        key: SMALL[key] for key in ("num_queries", "queue_capacity", "num_anchors", "bank_capacity")
    }
    file.write_text(json.dumps(plans))


def test_the_page_shows_what_its_commands_print(without_data):
    raw, compared = without_data.environment["nnUNet_raw"], 0
    for commands, shown in commands_and_output(FIRST_RUN):
        typed = [as_typed(words, raw) for words in commands if words[0] not in INSTALLING]
        output = "".join(without_data.run(*words) for words in typed)
        if any(words[0] == "nnUNetv2_plan_and_preprocess" for words in typed):
            narrow(Path(without_data.environment["nnUNet_preprocessed"]).glob("*/nnUNetPlans.json"))
        for line in shown:
            compared += 1
            assert re.search(pattern(line), output, re.MULTILINE), f"not printed: {line}\n\nbut:\n{output}"
    assert compared > 25
    assert len(list((without_data.tiny.root / "predictions").glob("*.nii.gz"))) == 8


@pytest.mark.parametrize(
    ("line", "printed", "like"),
    [
        ("train_loss 2.412", "2026-12-01 14:01:23.456789: train_loss 0.9", True),
        ("train_loss 2.412", "2026-12-01 14:01:23.456789: train_losses 0.9", False),
        ("Epoch 0", "Epoch 11", True),
        ("Epoch 0", "Epoch time", False),
        ("[ok]   nnUNet_raw=/data/nnUNet_raw (650 GB free)", "[ok]   nnUNet_raw=/a/b/nnUNet_raw (7 GB free)", True),
        ("1 s a step: about 3 min in all", "0.0123 s a step: about 12 s in all", True),
        ("Pseudo dice [...]", "Pseudo dice [0.0, nan]", True),
    ],
)
def test_numbers_and_folders_may_differ_and_words_may_not(line, printed, like):
    assert bool(re.search(pattern(line), printed, re.MULTILINE)) is like


def test_it_is_about_ten_minutes_on_a_cpu():
    """Few steps, few batches of validation, and the device in each command that has one."""
    values = {key: int(value) for key, value in re.findall(r"ssl\.(num_\w+)=(\d+)", FIRST_RUN)}
    assert values["num_epochs"] * values["num_iterations_per_epoch"] <= 50
    assert values["num_epochs"] * values["num_val_iterations_per_epoch"] <= 10
    typed = re.findall(r"^nnUNetv2_(?:train|predict) .*", FIRST_RUN, re.MULTILINE)
    assert len(typed) == 3
    assert all(line.endswith("-device cpu") for line in typed)
