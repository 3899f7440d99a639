import math
from xml.etree import ElementTree

import pytest
import seaborn
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.image import imread
from pandas import DataFrame

from nnunet_dvcl import figures
from nnunet_dvcl.figures import curve_styles, draw_curve, plain_style, save_picture

FILES = ("picture.csv", "picture.png", "picture.svg")


def save(folder, rows=((0, 0.5), (1, math.nan))):
    with plain_style():
        figure = Figure(figsize=(2, 1))
        figure.add_subplot().plot([0, 1], [0, 1])
        save_picture(figure, str(folder), "picture", DataFrame(rows, columns=["epoch", "value"]))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_picture_is_a_png_an_svg_and_a_table(tmp_path):
    folder = tmp_path / "new" / "folder"
    save(folder)
    assert sorted(contents(folder)) == list(FILES)
    assert imread(folder / "picture.png").shape[:2] == (300, 600), "300 dots an inch, for print"
    assert ElementTree.parse(folder / "picture.svg").getroot().tag.endswith("svg")
    assert (folder / "picture.csv").read_text().splitlines() == ["epoch,value", "0,0.5", "1,nan"]


def test_what_was_written_is_printed(tmp_path, capsys):
    save(tmp_path)
    printed = capsys.readouterr().out.split()
    assert sorted(printed[1:]) == [str(tmp_path / name) for name in FILES]


def test_the_same_numbers_give_the_same_files(tmp_path):
    save(tmp_path / "a")
    before = dict(rcParams)
    try:
        seaborn.set(font_scale=2.5)  # as nnU-Net's own plot does, for the whole process
        save(tmp_path / "b")
    finally:
        rcParams.update(before)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_replaced_in_one_step(tmp_path, monkeypatch, name):
    save(tmp_path)
    old = contents(tmp_path)

    def dies(source, target):
        if str(target).endswith(name):
            raise KeyboardInterrupt
        replace(source, target)

    replace = figures.os.replace
    monkeypatch.setattr(figures.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, rows=[(0, 0.7)])
    assert contents(tmp_path)[name] == old[name]


def test_curves_differ_in_color_and_in_gray():
    styles = curve_styles(28)
    assert len({(look["color"], look["linestyle"]) for look in styles}) == 28
    assert len({(look["linestyle"], look["marker"]) for look in styles}) == 28


def test_many_epochs_have_few_markers():
    axes = Figure().add_subplot()
    for length in (5, 1000):
        draw_curve(axes, [0.0] * length, "label", **curve_styles(1)[0])
    few, many = axes.get_lines()
    assert few.get_markevery() == 1
    assert many.get_markevery() == 100
