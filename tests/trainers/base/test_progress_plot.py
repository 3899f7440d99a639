import math

import pytest
import seaborn
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.image import imread

from nnunet_dvcl.trainers import nnUNetTrainerDVCL
from nnunet_dvcl.trainers.base.panels import panels_of
from nnunet_dvcl.trainers.base.progress_plot import plot_progress

NAN = math.nan
LOGGED = {
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


def test_each_key_is_one_curve_in_its_panel(draw):
    panels = draw(LOGGED)
    assert list(panels) == [
        "loss terms",
        "weight of the consistency terms",
        "share of unlabeled voxels",
        "entropy threshold τ [nats]",
        "share of capacity filled",
        "share of DVCL's neighbors and queries",
    ]
    assert sorted(key for curves in panels.values() for key in curves) == sorted(LOGGED)
    assert panels["loss terms"] == {"supervised_A": LOGGED["supervised_A"], "cps": LOGGED["cps"]}


def test_neighborhoods_and_gradients_have_their_panels(draw):
    panels = draw({"cps": [1.0], "val_neighbors_same": [0.5, 0.6], "gradient_cps": [0.0, 10.0]})
    assert panels == {
        "loss terms": {"cps": [1.0]},
        "neighborhoods of unreliable validation voxels [share]": {"val_neighbors_same": [0.5, 0.6]},
        "gradient of a term at the last decoder features [norm relative to the supervised one]": {
            "gradient_cps": [0.0, 10.0]
        },
    }
    assert [axes.get_yscale() for axes in draw.figures[-1].axes] == ["linear", "log", "linear"]


def test_an_unknown_key_is_drawn_with_the_loss_terms(draw):
    assert draw({"teacher": [1.0], "rampup": [0.0]})["loss terms"] == {"teacher": [1.0]}


def test_panels_without_a_key_are_left_out(draw):
    assert draw({"rampup": [0.0, 1.0]}) == {"weight of the consistency terms": {"rampup": [0.0, 1.0]}}


def test_nan_leaves_a_gap(draw):
    curve = draw(LOGGED)["entropy threshold τ [nats]"]["threshold_A"]
    assert curve[0] == 0.9
    assert math.isnan(curve[1])
    assert curve[2] == 0.7


@pytest.mark.parametrize("values", [[0.5], [NAN], [NAN, NAN]])
def test_one_epoch_or_nothing_to_tell_is_drawn(draw, values):
    assert len(draw({"cps": values})["loss terms"]["cps"]) == len(values)


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
