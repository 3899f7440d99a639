"""The demo's table, its file, its picture."""

import csv
import json
import re

import numpy as np
import pytest

from nnunet_dvcl.tools.demo import report
from nnunet_dvcl.tools.demo.phantom import ORGANS, write_dataset


@pytest.fixture
def dice():
    first = {organ: 0.5 for organ in ORGANS}
    return report.compare({"nnU-Net": first, "DVCL": {**first, "liver": 0.75}})


def test_read_dice_names_the_organs_of_nnunets_summary(tmp_path):
    summary = {"mean": {str(label): {"Dice": label / 100, "IoU": 0.0} for label in ORGANS.values()}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert report.read_dice(tmp_path / "summary.json") == {organ: label / 100 for organ, label in ORGANS.items()}


def test_rows_end_with_the_mean_over_organs(dice):
    rows = list(dice.itertuples(name=None))
    assert [row[0] for row in rows] == [*ORGANS, "mean"]
    assert rows[list(ORGANS).index("liver")] == ("liver", 0.5, 0.75)
    assert rows[-1][1:] == pytest.approx((0.5, 0.5 + 0.25 / len(ORGANS)))


def test_table_shows_each_organ_under_its_title(dice):
    wide = dice.assign(**{"nnU-Net, same time": 0.625})
    lines = report.table(wide).splitlines()
    assert re.split(r"  +", lines[0].strip()) == ["nnU-Net", "DVCL", "nnU-Net, same time"]
    assert next(line for line in lines if line.startswith("liver")).split() == ["liver", "0.500", "0.750", "0.625"]
    assert len({len(line) for line in lines}) == 1


def test_csv_holds_the_table(dice, tmp_path):
    report.write_csv(dice, tmp_path / "dice.csv")
    with open(tmp_path / "dice.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["organ", "nnU-Net", "DVCL"]
    assert rows[1 + list(ORGANS).index("liver")] == ["liver", "0.5000", "0.7500"]
    assert rows[-1][0] == "mean"


def test_draw_writes_a_picture_with_colors(dice, tmp_path):
    from matplotlib.image import imread

    raw = write_dataset(tmp_path, num_labeled=0, num_unlabeled=0, num_test=2, shape=(16, 24, 24))
    predictions = dict.fromkeys(["nnU-Net", "DVCL"], raw / "labelsTs")
    report.draw(raw, predictions, dice, tmp_path / "comparison.png")
    picture = imread(tmp_path / "comparison.png")[..., :3]
    assert picture.shape[0] > 500
    assert picture.shape[1] > 1200
    assert (np.ptp(picture, axis=-1) > 0.3).mean() > 0.02
    assert [p.name for p in tmp_path.glob("*.png")] == ["comparison.png"]
