import shlex

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.image import imread

import nnunet_dvcl.tools.plots.features as module
from nnunet_dvcl.cli import main
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.networks import FeatureHead
from nnunet_dvcl.tools.device import find_device
from nnunet_dvcl.tools.plots.features import embed, plot_features
from nnunet_dvcl.trainers import nnUNetTrainerCPS, nnUNetTrainerDVCL, nnUNetTrainerSupervised

SPLIT = {"train": ["case_4"], "val": ["case_3", "case_1"], "unlabeled": ["case_0", "case_2", "case_5"]}


@pytest.fixture
def train(tiny_dataset, start):
    """``train(TrainerClass, configuration)``: the trainer after a step, its best and its final checkpoint saved."""
    tiny_dataset.write_splits(SPLIT)

    def run(trainer_class, configuration="3d_tiny", **ssl):
        trainer = start(trainer_class, configuration, fold=0, **ssl)
        trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_best.pth")
        step = trainer.train_step(next(trainer.dataloader_train))
        trainer.on_train_epoch_end([step])
        trainer.current_epoch = 1
        trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
        return trainer

    return run


@pytest.fixture
def plot(tmp_path, table):
    """``plot(*trainers, configuration, **options)``: the rows of the table."""

    def run(*trainers, configuration="3d_tiny", **options):
        options = {"num_voxels": 60, "device": "cpu"} | options
        plot_features("901", configuration, "0", trainers, str(tmp_path / "out"), **options)
        return table(tmp_path / "out/features.csv")

    return run


def exact(values):
    return np.array([float(value) for value in values])


def test_rows_are_checkpoints_and_columns_trainers(train, plot, figures, tmp_path):
    """One long test: a trainer takes seconds to build."""
    dvcl = train(nnUNetTrainerDVCL)
    train(nnUNetTrainerSupervised)
    rows = plot("nnUNetTrainerDVCL", "nnUNetTrainerSupervised")

    figure = figures[0]
    assert [axes.get_title() for axes in figure.axes] == [
        "DVCL, best (epoch 1)\nfeature head",
        "Supervised, best (epoch 1)\ndecoder features",
        "DVCL, final (epoch 2)\nfeature head",
        "Supervised, final (epoch 2)\ndecoder features",
    ]
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["true organ:", "background", "large", "small", "voxel:", "unreliable", "reliable"]
    assert all("t-SNE" in axes.get_xlabel() and "t-SNE" in axes.get_ylabel() for axes in figure.axes)

    header = ["trainer", "checkpoint", "case", "x", "y", "organ", "predicted", "reliable", "entropy"]
    assert list(rows[0]) == header
    panels = {}
    for row in rows:
        panels.setdefault((row["checkpoint"], row["trainer"]), []).append(row)
    names = [(c, t) for c in ("best", "final") for t in ("DVCL", "Supervised")]
    assert list(panels) == [(f"checkpoint_{c}.pth", f"nnUNetTrainer{t}") for c, t in names]
    for axes, (key, voxels) in zip(figure.axes, panels.items(), strict=True):
        check_panel(axes, voxels)
        if key[0] == "checkpoint_final.pth" and "DVCL" in key[1]:
            check_forward(dvcl, voxels)
    assert imread(tmp_path / "out/features.png").shape[1] > imread(tmp_path / "out/features.png").shape[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"features.{e}" for e in ("csv", "png", "svg")
    ]
    first = (tmp_path / "out/features.svg").read_bytes()
    assert plot("nnUNetTrainerDVCL", "nnUNetTrainerSupervised") == rows
    assert (tmp_path / "out/features.svg").read_bytes() == first


def check_panel(axes, voxels):
    """What is drawn is what the table says: each voxel once, large and with a dark edge where it is unreliable."""
    assert {row["case"] for row in voxels} <= {"case_1", "case_3"}, "validation cases"
    reliable = exact(row["reliable"] for row in voxels)
    entropy = exact(row["entropy"] for row in voxels)
    assert 0 < reliable.sum() <= 30
    assert 0 < (reliable == 0).sum() <= 30
    assert entropy[reliable == 1].max() < entropy[reliable == 0].min()
    drawn = {}
    for line in axes.get_lines():
        look = (line.get_marker(), to_hex(line.get_color()), line.get_markersize(), line.get_markeredgewidth())
        drawn |= {(float(x), float(y)): look for x, y in zip(*line.get_data(), strict=True)}
    assert len(drawn) == len(voxels)
    looks = {}
    for row in voxels:
        look = drawn[float(row["x"]), float(row["y"])]
        looks.setdefault((row["organ"], row["reliable"]), set()).add(look)
    assert all(len(found) == 1 for found in looks.values()), "one look for each organ and half"
    looks = {key: found.pop() for key, found in looks.items()}
    for organ in {organ for organ, _ in looks}:
        if {(organ, "0"), (organ, "1")} <= set(looks):
            assert looks[organ, "0"][2] > looks[organ, "1"][2]
            assert looks[organ, "0"][3] > 0 == looks[organ, "1"][3]
    unreliable = [look[:2] for (_, half), look in looks.items() if half == "0"]
    assert len({color for _, color in unreliable}) == len({marker for marker, _ in unreliable}) == len(unreliable)


@torch.no_grad()
def check_forward(trainer, voxels):
    """Entropies and predictions are those of network A, all over the patches of the case."""
    network = trainer.network.eval()
    data, *_ = trainer.dataset_class(trainer.preprocessed_dataset_folder).load_case("case_1")
    corner = torch.from_numpy(data[:, :16, :16, :16])[None]
    probabilities = network(corner)[0].softmax(1)
    entropy = torch.special.entr(probabilities).sum(1).flatten().numpy()
    here = exact(row["entropy"] for row in voxels if row["case"] == "case_1")
    near = np.abs(here[:, None] - entropy).min(1)
    assert (near < 1e-6).sum() >= 5, "drawn voxels of the first patch are found in it"


def test_slices_one_checkpoint_and_chosen_cases(train, plot, figures):
    train(nnUNetTrainerCPS, "2d_tiny")
    chosen = {"checkpoints": ["checkpoint_final"], "cases": ["case_0", "case_5"]}
    rows = plot("nnUNetTrainerCPS", configuration="2d_tiny", **chosen)
    assert [axes.get_title() for axes in figures[0].axes] == ["CPS, final (epoch 2)\ndecoder features"]
    assert {row["case"] for row in rows} == {"case_0", "case_5"}
    assert {row["checkpoint"] for row in rows} == {"checkpoint_final.pth"}
    assert {row["organ"] for row in rows} == {"background", "large", "small"}


def test_the_head_and_the_alpha_of_the_checkpoint_are_used(train, plot, monkeypatch):
    trainer = train(nnUNetTrainerDVCL, entropy_alpha=0.25)
    given = []

    def fake(network, cases, patch_size, batch_size, labels, count, alpha, title):
        given.append((network, list(cases), list(patch_size), batch_size, labels.num_classes, count, alpha))
        raise UserError("stop")

    monkeypatch.setattr(module, "draw_features", fake)
    with pytest.raises(UserError, match="stop"):
        plot("nnUNetTrainerDVCL", checkpoints=["checkpoint_final.pth"])
    (network, *rest) = given[0]
    assert rest == [["case_1", "case_3"], [16, 16, 16], 2, 3, 60, 0.25]
    assert isinstance(network.head, FeatureHead)
    for shown, trained in ((network.head, trainer.companions["head_A"]), (network.network, trainer.network)):
        shown, trained = shown.state_dict(), trained.state_dict()
        assert shown.keys() == trained.keys()
        assert all(torch.equal(shown[key], trained[key]) for key in shown)
    assert not network.network.training


def test_the_command(train, tmp_path, monkeypatch, capsys, table):
    train(nnUNetTrainerDVCL)
    monkeypatch.chdir(tmp_path)
    command = shlex.split("plot features -d 901 -c 3d_tiny -f 0 -tr nnUNetTrainerDVCL -device cpu --voxels 40")
    assert main([*command, "-chk", "checkpoint_best.pth", "--cases", "case_2"]) == 0
    rows = table(tmp_path / "nnunet_dvcl_plots/features.csv")
    assert {(row["case"], row["checkpoint"]) for row in rows} == {("case_2", "checkpoint_best.pth")}
    assert 20 <= len(rows) <= 40
    assert "nnunet_dvcl_plots/features.svg" in capsys.readouterr().out
    for option, message in (
        (["--cases", "case_11", "scan_0"], "case_11: is not there; did you mean case_1"),
        (["--cases", "case_1", "scan_0"], "scan_0: has no truth, as it is a scan of imagesTr_unlabeled"),
        (
            ["-chk", "checkpoint_latest"],
            "has no checkpoint_latest.pth. It has checkpoint_final.pth, checkpoint_best.pth",
        ),
        (["-tr", "nnUNetTrainerCPS"], "nnUNetv2_train 901 3d_tiny 0 -tr nnUNetTrainerCPS -device cpu\n"),
        (["-p", "Mine"], "Mine.json does not exist"),
        (["-d", "77"], "No data set 77"),
        (["--voxels", "4"], "t-SNE needs at least 10"),
    ):
        capsys.readouterr()
        assert main([*command, *option]) == 1
        assert message in capsys.readouterr().err
    monkeypatch.delenv("nnUNet_results")
    assert main(command) == 1
    assert "nnUNet_results is not set" in capsys.readouterr().err


@pytest.mark.parametrize("label_mode", ["ignore", "regions + ignore"])
def test_regions_and_an_ignore_label(train, plot, label_mode):
    train(nnUNetTrainerDVCL)
    rows = plot("nnUNetTrainerDVCL", checkpoints=["checkpoint_final.pth"], num_voxels=200)
    expected = {"background", "whole", "small"} if "regions" in label_mode else {"background", "large", "small"}
    assert {row["organ"] for row in rows} == expected
    assert {row["predicted"] for row in rows} <= expected
    assert {row["reliable"] for row in rows} == {"0", "1"}


def test_networks_that_cannot_be_shown(train, plot, monkeypatch):
    trainer = train(nnUNetTrainerSupervised)
    with monkeypatch.context() as patch:
        patch.setattr(module, "unwrap", lambda network: network.encoder)
        with pytest.raises(UserError, match=r"PlainConvEncoder has no decoder\.seg_layers"):
            plot("nnUNetTrainerSupervised")
    torch.nn.init.constant_(next(trainer.network.parameters()), torch.nan)
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_best.pth")
    with pytest.raises(UserError, match=r"fold_0/checkpoint_best\.pth has diverged"):
        plot("nnUNetTrainerSupervised")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there():
    assert find_device(None) == torch.device("cpu")
    with pytest.raises(UserError, match="torch finds no cuda device here: use -device cpu"):
        find_device("cuda")


@pytest.mark.parametrize("features", [np.ones((12, 4)), np.linspace(1, 2, 12)[:, None], np.zeros((10, 3))])
def test_features_without_two_directions_have_places_too(features):
    first, second = (embed(features.astype(np.float32)) for _ in range(2))
    assert np.isfinite(first).all()
    assert np.array_equal(first, second)


def test_alike_features_are_near():
    rng = np.random.default_rng(0)
    centers = np.eye(3, 8)
    kinds = np.repeat([0, 1, 2], 30)
    scale = 10 ** rng.uniform(-3, 3, (90, 1))  # the cosine does not see it
    places = embed(((centers[kinds] + rng.normal(0, 0.02, (90, 8))) * scale).astype(np.float32))
    distances = np.linalg.norm(places[:, None] - places, axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (kinds[distances.argmin(1)] == kinds).all()
