import itertools
import math

import pytest
from matplotlib.image import imread

from nnunet_dvcl.cli import main
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.plots.curves import _shelves, plot_curves

NAN = math.nan
DICE = {"liver": [0.1, 0.5, 0.7], "spleen": [NAN, 0.2, 0.4], "mean": [0.1, 0.35, 0.55]}
SSL = {"ssl/cps": [0.3, 0.2, 0.1], "ssl/threshold_A": [NAN, 0.8, 0.6], "ssl/gradient_cps": [NAN, 1.0, 100.0]}


def logging_of(dice=DICE, **ssl):
    organs = [values for organ, values in dice.items() if organ != "mean"]
    per_epoch = [list(values) for values in zip(*organs, strict=True)]
    return {"mean_fg_dice": dice["mean"], "dice_per_class_or_region": per_epoch, "train_losses": [1.0], **ssl}


@pytest.fixture
def train(train):
    """The checkpoint holds these logged values."""

    def write(trainer="nnUNetTrainerDVCL", logging=None, **options):
        return train(trainer, content={"logging": logging_of(**SSL) if logging is None else logging}, **options)

    return write


@pytest.fixture
def draw(tmp_path, figures):
    """``draw(*folders)``: name of a picture -> panel title -> {label: values}, as drawn."""

    def curves(axes) -> dict[str, list[float]]:
        return {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}

    def plot(*folders, **options):
        del figures[:]
        plot_curves([str(folder) for folder in folders], str(tmp_path / "out"), **options)
        names = sorted(path.stem for path in (tmp_path / "out").glob("*.png"))
        drawn = zip(names, figures[::2], strict=True)
        return {name: {axes.get_title(): curves(axes) for axes in figure.axes} for name, figure in drawn}

    return plot


def same(values, expected):
    return values == pytest.approx(expected, nan_ok=True)


def test_one_panel_an_organ_and_one_curve_a_trainer(train, draw, figures):
    other = {"liver": [0.2, 0.3], "spleen": [0.3, 0.1], "mean": [0.25, 0.2]}
    cps = train("nnUNetTrainerCPS", logging=logging_of(other))
    dice = draw(train(), cps / "fold_0", cps)["curves_dice"]
    assert list(dice) == ["liver", "spleen", "mean"], "in the order of the labels' values, as nnU-Net's Dice"
    for organ, curves in dice.items():
        assert list(curves) == ["DVCL", "CPS"]
        assert same(curves["DVCL"], DICE[organ]), "nan is kept, and leaves a gap"
        assert same(curves["CPS"], other[organ]), "of another length"
    assert {(axes.get_xlabel(), axes.get_ylabel()) for axes in figures[0].axes} == {("epoch", "pseudo Dice")}
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["DVCL", "CPS"]


def test_one_panel_a_logged_value(train, draw, figures):
    ssl = {"ssl/cps": [0.9, 0.8, 0.7], "ssl/teacher": [1.0, 2.0, 3.0]}
    panels = draw(
        train(), train("nnUNetTrainerCPS", logging=logging_of(**ssl)), train("nnUNetTrainer", logging=logging_of())
    )
    drawn = panels["curves_ssl"]
    assert list(drawn) == ["cps", "teacher", "threshold_A", "gradient_cps"]
    assert drawn["cps"] == {"DVCL": SSL["ssl/cps"], "CPS": [0.9, 0.8, 0.7]}
    assert drawn["teacher"] == {"CPS": [1.0, 2.0, 3.0]}
    assert same(drawn["threshold_A"]["DVCL"], SSL["ssl/threshold_A"])
    figure = figures[-1]
    assert [part.get_suptitle().replace("\n", " ") for part in figure.subfigs] == [
        "loss terms",
        "entropy threshold τ [nats]",
        "gradient of a term at the last decoder features [norm relative to the supervised one]",
    ]
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "loss", "τ [nats]", "relative norm"]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "linear", "linear", "log"]


def test_a_picture_has_a_sane_size_however_many_values_there_are(train, draw, figures, tmp_path):
    few = draw(train(), keys=["cps", "gradient_cps"])
    assert imread(tmp_path / "out/curves_ssl.png").shape[1] == 2340, "sharp, where there are few"
    many = {f"ssl/{kind}{i}": [0.1, 0.2] for kind in ("", "val_", "gradient_", "threshold_") for i in range(9)}
    drawn = draw(train(logging=logging_of(**SSL, **many)))["curves_ssl"]
    assert len(drawn) == len(SSL) + len(many) > len(few["curves_ssl"])
    height, width, _ = imread(tmp_path / "out/curves_ssl.png").shape
    assert 2000 <= max(height, width) <= 3000
    assert 0.5 <= height / width <= 2
    boxes = [axes.get_window_extent() for axes in figures[-1].axes]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_panels_stand_beside_each_other():
    assert _shelves([2, 1, 4, 6, 8, 1], 6) == [
        (0, 0, 1, 2), (0, 2, 1, 1), (1, 0, 1, 4), (2, 0, 1, 6), (3, 0, 2, 6), (5, 0, 1, 1),
    ]  # fmt: skip


def test_a_trainer_has_one_look_in_all_panels(train, draw, figures):
    draw(train(logging=logging_of()), train("nnUNetTrainerCPS"))
    dice, ssl = figures[0].axes, figures[-1].axes
    looks = {
        (line.get_label(), line.get_color(), line.get_linestyle()) for a in [*dice, *ssl] for line in a.get_lines()
    }
    assert len(looks) == 2


def test_the_tables_hold_all_values(train, draw, table, tmp_path):
    draw(train(), train("nnUNetTrainerCPS", logging=logging_of(**{"ssl/cps": [0.5]}), fold=1))
    rows = table(tmp_path / "out/curves_dice.csv")
    assert list(rows[0]) == ["trainer", "configuration", "plans", "fold", "key", "organ", "epoch", "value"]
    assert len(rows) == 2 * 3 * 3
    names = {"configuration": "3d_fullres", "plans": "nnUNetPlans"}
    dvcl, cps = ({"trainer": f"nnUNetTrainer{t}", **names, "fold": f} for t, f in (("DVCL", "0"), ("CPS", "1")))
    assert {**dvcl, "key": "dice_per_class_or_region", "organ": "liver", "epoch": "1", "value": "0.5"} in rows
    assert {**cps, "key": "dice_per_class_or_region", "organ": "spleen", "epoch": "0", "value": "nan"} in rows
    assert {**dvcl, "key": "mean_fg_dice", "organ": "mean", "epoch": "2", "value": "0.55"} in rows
    rows = table(tmp_path / "out/curves_ssl.csv")
    assert len(rows) == 3 * 3 + 1
    assert {**cps, "key": "ssl/cps", "organ": "", "epoch": "0", "value": "0.5"} in rows
    assert {**dvcl, "key": "ssl/gradient_cps", "organ": "", "epoch": "2", "value": "100.0"} in rows


def test_keys_choose_what_is_drawn(train, draw, tmp_path, table):
    drawn = draw(train(), keys=["cps", "gradient_*"])["curves_ssl"]
    assert list(drawn) == ["cps", "gradient_cps"]
    assert {row["key"] for row in table(tmp_path / "out/curves_ssl.csv")} == {"ssl/cps", "ssl/gradient_cps"}
    with pytest.raises(UserError, match=r"No logged value is named valid_\*\. There are: .*cps.*"):
        draw(train(), keys=["cps", "valid_*"])


def test_trainers_of_nnunet_have_no_second_picture(train, draw, capsys):
    assert list(draw(train("nnUNetTrainer", logging=logging_of()))) == ["curves_dice"]
    assert "No curves_ssl" in capsys.readouterr().out


def test_regions_have_their_names_in_their_order(train, draw):
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    logging = logging_of({"whole": [0.9], "core": [0.5], "mean": [0.7]})
    dice = draw(train(labels=labels, logging=logging))["curves_dice"]
    assert dice == {"whole": {"DVCL": [0.9]}, "core": {"DVCL": [0.5]}, "mean": {"DVCL": [0.7]}}


def test_the_newest_checkpoint_counts(train, draw):
    for name, value in (("best", 0.1), ("latest", 0.2), ("final", 0.3)):
        logging = logging_of({"liver": [value], "spleen": [value], "mean": [value]})
        model = train(logging=logging, checkpoint=f"checkpoint_{name}.pth")
    assert draw(model)["curves_dice"]["mean"] == {"DVCL": [0.3]}


def test_errors_name_the_folder(train, draw, tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist: expected the folder of a trained model"):
        draw(tmp_path / "nowhere")
    empty = tmp_path / "nnUNetTrainerDVCL__nnUNetPlans__2d"
    (empty / "fold_0").mkdir(parents=True)
    for folder in (empty, empty / "fold_0"):
        with pytest.raises(UserError, match=rf"{folder} has no checkpoint: expected one of checkpoint_final\.pth"):
            draw(folder)
    (tmp_path / "elsewhere/fold_0").mkdir(parents=True)
    with pytest.raises(UserError, match="elsewhere is not named as a trained model's folder"):
        draw(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"fold_0/checkpoint_final\.pth holds no logged values"):
        draw(train(logging={}))
    model = train()
    (model / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"dataset\.json does not exist"):
        draw(model)
    (train() / "fold_0/checkpoint_final.pth").write_bytes(b"half")
    with pytest.raises(UserError, match=r"checkpoint_final\.pth cannot be read"):
        draw(model)
    assert not (tmp_path / "out").exists()


def test_other_organs_are_another_data_set(train, draw):
    heart = train(dataset="Dataset502_Heart", labels={"background": 0, "left": 1, "right": 2})
    with pytest.raises(UserError, match=r"Dataset502_Heart/.* has the organs left, right, but .* liver, spleen"):
        draw(train(), heart)


def test_the_command(train, tmp_path, monkeypatch, capsys, table):
    monkeypatch.chdir(tmp_path)
    assert main(["plot", "curves", str(train()), str(train("nnUNetTrainerCPS") / "fold_0")]) == 0
    folder = tmp_path / "nnunet_dvcl_plots"
    pictures = ("curves_dice", "curves_ssl")
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{p}.{e}" for p in pictures for e in ("csv", "png", "svg")
    ]
    assert {row["trainer"] for row in table(folder / "curves_ssl.csv")} == {"nnUNetTrainerDVCL", "nnUNetTrainerCPS"}
    assert "nnunet_dvcl_plots/curves_ssl.svg" in capsys.readouterr().out
    assert main(["plot", "curves", "nowhere", "-o", str(tmp_path / "other")]) == 1
    assert capsys.readouterr().err.startswith("Error: nowhere does not exist")
