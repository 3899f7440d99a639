import math
import re
from pathlib import Path

import pytest
import seaborn
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.image import imread

from nnunet_dvcl.trainers import nnUNetTrainerDVCL
from nnunet_dvcl.trainers.base.panels import in_words, panels_of
from nnunet_dvcl.trainers.base.progress_plot import plot_progress

NAN = math.nan
WORDS_ALREADY = {"consistency", "dual_task", "signed_distance", "skipped_steps"}
LOGGED = {
    "dice": [0.1, 0.3, 0.5],
    "dice_average": [0.1, 0.12, 0.16],
    "agreement": [0.5, 0.7, 0.9],
    "skipped_steps": [2, 0, 0],
    "supervised_A": [1.0, 0.8, 0.7],
    "cps": [0.1, 0.2, 0.1],
    "threshold_A": [0.9, NAN, 0.7],
    "rampup": [0.0, 0.5, 1.0],
    "unreliable_A": [0.3, 0.3, 0.2],
    "bank_fill": [0.0, 0.5, 1.0],
    "outlier_queries": [NAN, NAN, 0.1],
}


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """``draw(logged)``: panel title -> {label: values}, as drawn; the PNG is checked to be one."""
    figures = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), savefig(self, *a, **k)))

    def plot(logged):
        file = tmp_path / "progress_ssl.png"
        plot_progress(logged, panels_of(nnUNetTrainerDVCL), str(file))
        assert imread(file).shape[0] > 100
        assert [path.name for path in tmp_path.iterdir()] == [file.name]
        return {
            axes.get_title("left"): {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
            for axes in figures[-1].axes
        }

    plot.figures = figures
    return plot


def test_dice_agreement_and_losses_come_first_and_each_key_is_one_curve(draw):
    panels = draw(LOGGED)
    assert list(panels) == [
        "pseudo Dice of network A on validation patches",
        "share of unlabeled voxels",
        "loss terms",
        "weight of the consistency terms",
        "steps that were skipped",
        "entropy threshold τ [nats]",
        "share of capacity filled",
        "share of DVCL's neighbors and queries",
    ]
    assert sorted(key for curves in panels.values() for key in curves) == sorted(map(in_words, LOGGED))
    assert panels["loss terms"] == {
        "supervised loss, network A": LOGGED["supervised_A"],
        "cross pseudo supervision": LOGGED["cps"],
    }
    assert [axes.get_ylabel() for axes in draw.figures[-1].axes][:4] == ["Dice", "share", "loss", "weight"]


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 1000])
def test_epochs_are_whole(draw, epochs):
    draw({"cps": [0.5] * epochs})
    (axes,) = draw.figures[-1].axes
    ticks = [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    assert 1 <= len(ticks) <= 7
    assert all(float(tick).is_integer() for tick in ticks)


def test_every_value_of_the_reference_has_words():
    """A method of one's own gets its key without the underscores."""
    text = (Path(__file__).parents[3] / "docs/reference/logging.md").read_text()
    cells = re.findall(r"^\| (`ssl/.*?) \|", text, re.MULTILINE)
    keys = {key.removeprefix("gradient_") for key in re.findall(r"`ssl/(\w+)`", " ".join(cells))}
    assert {"supervised_A", "cps", "val_outsiders_differ"} <= keys
    assert not [
        key
        for key in keys - WORDS_ALREADY
        if (key in ("cps", "hqcl", "dvcl") or "_" in key) and in_words(key) == key.replace("_", " ")
    ]
    assert in_words("my_new_term_B") == "my new term, network B"


def test_neighborhoods_and_gradients_have_their_panels(draw):
    panels = draw({"cps": [1.0], "val_neighbors_same": [0.5, 0.6], "gradient_cps": [0.0, 10.0]})
    assert panels == {
        "loss terms": {"cross pseudo supervision": [1.0]},
        "neighborhoods of unreliable validation voxels [share]": {"all neighbors of the same class": [0.5, 0.6]},
        "gradient of a term at the last decoder features [norm relative to the supervised one]": {
            "cross pseudo supervision": [0.0, 10.0]
        },
    }
    assert [axes.get_yscale() for axes in draw.figures[-1].axes] == ["linear", "log", "linear"]


def test_an_unknown_key_is_drawn_with_the_loss_terms(draw):
    assert draw({"teacher": [1.0], "rampup": [0.0]})["loss terms"] == {"teacher": [1.0]}


def test_panels_without_a_key_are_left_out(draw):
    assert draw({"rampup": [0.0, 1.0]}) == {"weight of the consistency terms": {"ramp-up w(t)": [0.0, 1.0]}}


def test_nan_leaves_a_gap(draw):
    curve = draw(LOGGED)["entropy threshold τ [nats]"]["threshold, network A"]
    assert curve[0] == 0.9
    assert math.isnan(curve[1])
    assert curve[2] == 0.7


@pytest.mark.parametrize("values", [[0.5], [NAN], [NAN, NAN]])
def test_one_epoch_or_nothing_to_tell_is_drawn(draw, values):
    assert len(draw({"cps": values})["loss terms"]["cross pseudo supervision"]) == len(values)


def test_an_earlier_style_does_not_leak_in_and_ours_not_out(draw, tmp_path):
    """nnU-Net's own plot sets seaborn's style and fonts of 2.5 times their size, for the whole process."""
    draw(LOGGED)
    plain = (tmp_path / "progress_ssl.png").read_bytes()
    before = dict(rcParams)
    try:
        seaborn.set(font_scale=2.5)
        huge = rcParams["font.size"]
        draw(LOGGED)
        assert rcParams["font.size"] == huge
    finally:
        rcParams.update(before)
    assert (tmp_path / "progress_ssl.png").read_bytes() == plain


def test_a_picture_is_replaced_in_one_step(draw, tmp_path, monkeypatch):
    draw(LOGGED)
    file = tmp_path / "progress_ssl.png"
    old = file.read_bytes()

    def dies(self, target, **_):
        with open(target, "wb") as half:
            half.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", dies)
    with pytest.raises(KeyboardInterrupt):
        plot_progress(LOGGED, panels_of(nnUNetTrainerDVCL), str(file))
    assert file.read_bytes() == old
