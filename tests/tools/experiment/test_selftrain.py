"""Self-training: what is refused, which voxels are ignored, which data set is taken, as a row of an experiment."""

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
from tiny_data import read_image, write_image

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools import selftrain
from nnunet_dvcl.tools.experiment import runner
from nnunet_dvcl.tools.experiment.runner import run_experiment
from nnunet_dvcl.tools.experiment.runs import all_runs
from nnunet_dvcl.tools.running import command as commands
from nnunet_dvcl.tools.selftrain import ignore_label, ignore_voxels, is_certain

SPLIT = {"train": ["case_0", "case_1"], "val": ["case_5"], "unlabeled": ["case_3"]}
LABELS = {"labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}


@pytest.fixture
def faked(monkeypatch, tiny_dataset):
    """The command lines that would have been run; each leaves what its own would."""
    tiny_dataset.write_splits(SPLIT)
    calls = []

    def call(command, **_):
        calls.append(str(command))
        words = list(command)
        if command[0] == "nnUNetv2_train":
            (dataset,) = {path.name for path in tiny_dataset.raw.parent.glob(f"Dataset{int(words[1]):03d}_*")}
            fold = tiny_dataset.results / dataset / f"{words[5]}__{words[7]}__{words[2]}" / f"fold_{words[3]}"
            (fold / "validation").mkdir(parents=True)
            (fold / "checkpoint_final.pth").touch()
            (fold / "validation/summary.json").touch()
        elif command[0] == "nnUNetv2_predict":
            output = Path(words[4])
            output.mkdir(exist_ok=True)
            for image in Path(words[2]).iterdir():
                array = read_image(image)
                name = image.name.replace("_0000", "")
                write_image(output / name, np.ones(array.shape, np.uint8))
                if "--save_probabilities" in words:
                    np.savez(output / name.replace(".nii.gz", ".npz"), probabilities=np.full((3, *array.shape), 0.3))
        elif command[0] == "nnUNetv2_move_plans_between_datasets":
            (dataset,) = tiny_dataset.raw.parent.glob(f"Dataset{int(words[4]):03d}_*")
            plans = (tiny_dataset.preprocessed / "nnUNetPlans.json").read_text()
            (tiny_dataset.preprocessed.parent / dataset.name / "nnUNetPlans.json").write_text(plans)

    monkeypatch.setattr(selftrain, "_call", call)
    return calls


def names(calls: list[str]) -> list[str]:
    return [call.split()[0].removeprefix("nnUNetv2_") for call in calls]


ROUND = ["predict", "move_plans_between_datasets", "preprocess", "train"]


def test_rounds_each_with_the_network_trained_last(faked, tiny_dataset):
    folder = selftrain.selftrain("901", "2d_tiny", 0, rounds=2, first_id=950, device="cpu")
    assert names(faked) == ["train", *ROUND, *ROUND]
    assert " -d 901 -c 2d_tiny -f 0 -tr nnUNetTrainer -p nnUNetPlans " in faked[1]
    assert " -d 950 -c 2d_tiny -f 0 -tr nnUNetTrainer -p nnUNetPlans " in faked[5]
    assert folder.parent.parent.name == "Dataset951_Tiny_SelfTrain2"
    faked.clear()
    assert selftrain.selftrain("901", "2d_tiny", 0, rounds=2, device="cpu") == folder
    assert faked == []


def test_other_options_are_another_data_set(faked):
    first = selftrain.selftrain("901", "2d_tiny", 0, device="cpu")
    second = selftrain.selftrain("901", "2d_tiny", 0, device="cpu", ignore_uncertain=0.8)
    assert [folder.parent.parent.name for folder in (first, second)] == [
        "Dataset902_Tiny_SelfTrain1", "Dataset903_Tiny_SelfTrain1",
    ]  # fmt: skip
    assert names(faked).count("train") == 3  # one teacher, two students


def test_what_is_broken_off_goes_on(faked, tiny_dataset, monkeypatch):
    done = selftrain._call

    def until_preprocessing(command, **options):
        if command[0] == "nnUNetv2_preprocess":
            raise UserError("stopped here")
        done(command, **options)

    monkeypatch.setattr(selftrain, "_call", until_preprocessing)
    with pytest.raises(UserError, match="stopped here"):
        selftrain.selftrain("901", "2d_tiny", 0, device="cpu")
    monkeypatch.setattr(selftrain, "_call", done)
    faked.clear()
    selftrain.selftrain("901", "2d_tiny", 0, device="cpu")
    assert names(faked) == ["move_plans_between_datasets", "preprocess", "train"]


def test_uncertain_voxels_are_ignored_and_their_probabilities_removed(faked, tiny_dataset):
    selftrain.selftrain("901", "2d_tiny", 0, ignore_uncertain=0.8, device="cpu")
    raw = tiny_dataset.raw.parent / "Dataset902_Tiny_SelfTrain1"
    dataset_json = json.loads((raw / "dataset.json").read_text())
    assert dataset_json["labels"]["ignore"] == 3
    assert (read_image(Path(dataset_json["dataset"]["scan_0"]["label"])) == 3).all()
    assert not list(raw.rglob("*.npz"))


def test_ignore_voxels(tmp_path):
    predictions, labels = tmp_path / "predictions", tmp_path / "labels"
    predictions.mkdir()
    labels.mkdir()
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet((0.3, 0.3, 0.3), (4, 5, 6)).transpose(3, 0, 1, 2)
    write_image(predictions / "x.nii.gz", probabilities.argmax(0).astype(np.uint8))
    np.savez(predictions / "x.npz", probabilities=probabilities)
    ignore_voxels(predictions, labels, "x", LABELS, 0.7)
    written = read_image(labels / "x.nii.gz")
    for index in np.ndindex(written.shape):
        best = probabilities[(slice(None), *index)]
        assert written[index] == (best.argmax() if best.max() >= 0.7 else 3)
    assert [path.name for path in labels.iterdir()] == ["x.nii.gz"]


def test_certain_regions_are_all_clearly_in_or_out():
    probabilities = np.array([[0.95, 0.95, 0.05, 0.5], [0.9, 0.6, 0.02, 0.99]])
    assert list(is_certain(probabilities, 0.9, regions=True)) == [True, False, True, False]
    assert list(is_certain(probabilities, 0.9, regions=False)) == [True, True, False, True]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"background": 0, "a": 1, "b": 2}, 3),
        ({"background": 0, "whole": [1, 2], "part": [2]}, 3),
        ({"a": 1, "ignore": 5}, 5),
    ],
)
def test_the_ignore_label_is_the_next_free_one(labels, expected):
    assert ignore_label({"labels": labels}) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"trainer": "nnUNetTrainerDVCL"},
            "nnUNetTrainerDVCL needs unlabeled cases, of which self-training leaves none",
        ),
        ({"fold": 3}, "has no fold 3"),
        ({"configuration": "3d_x"}, "have no configuration 3d_x"),
        ({"plans": "otherPlans"}, r"otherPlans\.json does not exist"),
        ({"dataset_name_or_id": "900"}, "No data set 900"),
    ],
)
def test_what_is_refused(faked, options, message):
    with pytest.raises(UserError, match=message):
        selftrain.selftrain(**{"dataset_name_or_id": "901", "configuration": "2d_tiny", "fold": 0} | options)
    assert faked == []


def test_without_an_unlabeled_case(faked, tiny_dataset):
    for file in tiny_dataset.images.iterdir():
        file.unlink()
    tiny_dataset.write_splits(SPLIT | {"unlabeled": []})
    with pytest.raises(UserError, match="has no unlabeled case"):
        selftrain.selftrain("901", "2d_tiny", 0)


def test_other_splits_are_noticed(faked, tiny_dataset):
    selftrain.selftrain("901", "2d_tiny", 0, device="cpu")
    tiny_dataset.write_splits(SPLIT | {"val": ["case_4"]})
    with pytest.raises(UserError, match="Dataset902_Tiny_SelfTrain1 was made of another split of Dataset901_Tiny"):
        selftrain.selftrain("901", "2d_tiny", 0, device="cpu")


def test_no_number_left(faked):
    with pytest.raises(UserError, match="No data set number from 1000 to 999 is free"):
        selftrain.selftrain("901", "2d_tiny", 0, first_id=1000, device="cpu")


# ---------------------------------------------------------------- as a row of an experiment

_SELFTRAIN = """
    #!/bin/sh
    shift 2  # -m nnunet_dvcl.cli
    echo "$*" >> "$(dirname "$0")/calls"
    model="nnUNetTrainer__nnUNetPlans__2d_small_seed0/fold_0"
    test -e "$nnUNet_results/Dataset901_Tiny/$model/checkpoint_final.pth" || exit 9
    student="Dataset600_Tiny_SelfTrain1"
    mkdir -p "$nnUNet_raw/$student"
    echo '{"made_of": {}, "student": {"round": 1, "ignore_uncertain": 0.9, "teacher": {"dataset": "Dataset901_Tiny",
        "plans": "nnUNetPlans", "configuration": "2d_small_seed0", "fold": 0, "trainer": "nnUNetTrainer"}}}' \\
        > "$nnUNet_raw/$student/selftrain.json"
    fold="$nnUNet_results/$student/$model"
    mkdir -p "$fold/validation"
    touch "$fold/checkpoint_final.pth" "$fold/validation/summary.json"
"""
ROWS = [
    {"trainer": "nnUNetTrainer", "name": "selftraining", "selftrain": {"ignore_uncertain": 0.9}},
    "nnUNetTrainer",
]


def test_a_row_waits_for_its_teacher_and_tests_the_student(place, fakes, monkeypatch):
    monkeypatch.setattr(runner, "_POLL", 0.02)
    script = fakes.folder / "fake_selftrain"
    script.write_text(textwrap.dedent(_SELFTRAIN).strip() + "\n")
    script.chmod(0o755)
    monkeypatch.setattr(commands.sys, "executable", str(script))
    fakes.let("2d_small_seed0", "sleep 0.2")
    here = place(trainers=ROWS, splits={"labeled": ["50%"], "folds": 2, "test": 0.34}, devices=["cpu", "cpu"])
    assert run_experiment(here) == 0
    assert [call.split()[0] for call in fakes.calls] == ["train", "predict", "selftrain", "predict"]
    assert fakes.calls[2] == (
        "selftrain -d 901 -c 2d_small_seed0 -f 0 -tr nnUNetTrainer -p nnUNetPlans --rounds 1 --ignore-uncertain 0.9 "
        "--to 600 -device cpu"
    )
    assert " -d 600 -c 2d_small_seed0 -f 0 " in fakes.calls[3]
    (run,) = [run for run in all_runs(here.experiment) if run.row.name == "selftraining"]
    assert json.loads((here.home(run) / "experiment_run.json").read_text())["selftrain"]["ignore_uncertain"] == 0.9
    fakes.forget()
    assert run_experiment(here) == 0
    assert fakes.calls == []


def test_a_row_with_a_semi_supervised_trainer_is_refused(place, fakes):
    with pytest.raises(UserError, match="nnUNetTrainerDVCL needs unlabeled cases"):
        run_experiment(place(trainers=[{"trainer": "nnUNetTrainerDVCL", "name": "s", "selftrain": {}}]))
