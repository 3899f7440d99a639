"""``nnunet_dvcl predict-next-stage``: what is predicted, what is kept, and that no label is read."""

import json
import os
import shutil
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy

from nnunet_dvcl import progress
from nnunet_dvcl.cascade import next_stage
from nnunet_dvcl.cli import main
from nnunet_dvcl.data import ImageMask
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.next_stage import predict_next_stage
from nnunet_dvcl.trainers import nnUNetTrainerCPS, nnUNetTrainerSSL

UNLABELED = {"case_3", "case_4", "scan_0", "scan_1", "scan_2"}


@pytest.fixture
def tiny(cascade_dataset, monkeypatch):
    monkeypatch.setattr(nnUNetTrainerSSL, "_num_processes", 1)
    fold = {"train": ["case_0", "case_1", "case_2"], "val": ["case_5"], "unlabeled": ["case_3", "case_4"]}
    cascade_dataset.write_splits(fold)
    return cascade_dataset


@pytest.fixture
def trainer(tiny, build_trainer):
    """A first stage, as a finished training leaves it, without predictions."""
    trainer = build_trainer(nnUNetTrainerCPS, "3d_lowres_tiny", 0)
    trainer.on_train_start()
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    return trainer


@pytest.fixture
def folder(trainer) -> Path:
    return Path(trainer.output_folder) / "predicted_next_stage/cascade_tiny"


def run(**options) -> None:
    options = {"device": "cpu", "num_processes": 1} | options
    predict_next_stage("901", "3d_lowres_tiny", 0, "nnUNetTrainerCPS", **options)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {file.stem: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.glob("*.b2nd")}


def test_the_command(trainer, folder, tiny, capsys, monkeypatch):
    in_processes = next_stage.in_processes
    monkeypatch.setattr(progress, "LINES_APART", 0.0)
    monkeypatch.setattr(next_stage, "in_processes", lambda function, tasks, _: in_processes(function, tasks, 1))
    arguments = ["-d", "901", "-c", "3d_lowres_tiny", "-f", "0", "-tr", "nnUNetTrainerCPS", "-device", "cpu"]
    assert main(["predict-next-stage", *arguments]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == str(folder)
    assert "Predicting 5 of 5 unlabeled cases for cascade_tiny" in output.out
    assert "5/5" in output.err
    assert contents(folder).keys() == UNLABELED


def test_in_worker_processes(trainer, folder):
    run()
    alone = {file.stem: blosc2.open(str(file))[:] for file in folder.glob("*.b2nd")}
    for file in folder.glob("*.b2nd"):
        file.unlink()
    run(num_processes=2)
    assert contents(folder).keys() == alone.keys()
    for name, segmentation in alone.items():
        np.testing.assert_array_equal(blosc2.open(str(folder / f"{name}.b2nd"))[:], segmentation)


def test_no_label_is_read(trainer, folder, tiny, monkeypatch):
    """Other labels, or no way to read one, and the predictions are the same."""
    run()
    before = {name: content for name, (content, _) in contents(folder).items()}
    for file in folder.glob("*.b2nd"):
        file.unlink()
    for data in ("nnUNetPlans_3d_lowres_tiny", "nnUNetPlans_3d_fullres"):
        for case in ("case_3", "case_4"):
            file = tiny.preprocessed / data / f"{case}_seg.b2nd"
            shape = nnUNetDatasetBlosc2(str(file.parent), [case]).load_case(case)[1].shape
            file.unlink()
            nnUNetDatasetBlosc2.save_seg(np.full(shape, 2, np.int8), str(file.with_suffix("")))
    for file in [*tiny.raw.glob("labelsTr/*"), *tiny.preprocessed.glob("gt_segmentations/*")]:
        file.unlink()

    def read(*_):
        raise AssertionError("a label was read")

    monkeypatch.setattr(ImageMask, "__getitem__", read)
    run()
    assert {name: content for name, (content, _) in contents(folder).items()} == before


def test_what_is_done_is_kept(trainer, folder, tiny):
    run()
    before = contents(folder)
    run()
    assert contents(folder) == before
    (folder / "scan_1.b2nd").unlink()
    run()
    after = contents(folder)
    assert {name for name in UNLABELED if after[name] != before[name]} == {"scan_1"}
    assert after["scan_1"][0] == before["scan_1"][0]


def test_a_new_scan(trainer, folder, tiny):
    run()
    before = contents(folder)
    os.link(tiny.images / "scan_0_0000.nii.gz", tiny.images / "scan_3_0000.nii.gz")
    run()
    after = contents(folder)
    assert after.keys() == {*UNLABELED, "scan_3"}
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("data", ["nnUNetPlans_3d_lowres_tiny_unlabeled", "nnUNetPlans_3d_fullres_unlabeled"])
def test_a_replaced_scan_is_predicted_again(trainer, folder, tiny, data):
    run()
    before = contents(folder)
    for file in (tiny.preprocessed / data).glob("scan_1*"):
        file.unlink()
    run()
    after = contents(folder)
    assert {name for name in UNLABELED if after[name][1] != before[name][1]} == {"scan_1"}


def test_another_network_predicts_all_again(trainer, folder):
    run()
    before = contents(folder)
    with torch.no_grad():
        for weights in trainer.network.parameters():
            weights.neg_()
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_best.pth")
    run(checkpoint="checkpoint_best.pth")
    after = contents(folder)
    assert all(after[name][0] != before[name][0] for name in UNLABELED)
    run()
    assert {name: content for name, (content, _) in contents(folder).items()} == {
        name: content for name, (content, _) in before.items()
    }


def test_killed_while_writing(trainer, folder, monkeypatch):
    """What is half written never counts, and is removed by the next run."""
    replace = os.replace

    def cut_off(source, target):
        if str(target).endswith("scan_0.b2nd"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert contents(folder).keys() == {"case_3", "case_4"}
    monkeypatch.setattr(os, "replace", replace)
    hidden = folder / ".nnunet_dvcl"
    (hidden / "case_killed").mkdir()
    (hidden / "case_killed/scan_0.b2nd").write_bytes(b"half")
    run()
    assert contents(folder).keys() == UNLABELED
    assert not (hidden / "case_killed").exists()


def test_nnunets_other_dataset_class(trainer, folder, tiny):
    """What is written is what nnU-Net's NumPy class reads where the next stage is stored with it."""
    data = tiny.preprocessed / "nnUNetPlans_3d_fullres"
    source = nnUNetDatasetBlosc2(str(data))
    for case in source.identifiers:
        image, labels, _, properties = source.load_case(case)
        nnUNetDatasetNumpy.save_case(image[:], labels[:], properties, str(data / case))
    for file in data.glob("*.b2nd"):
        file.unlink()
    shutil.rmtree(f"{data}_unlabeled")
    run()
    assert {file.name for file in folder.glob("*.*")} >= {f"{case}.npz" for case in UNLABELED}
    image, _, segmentation, _ = nnUNetDatasetNumpy(str(data), ["case_3"], str(folder)).load_case("case_3")
    assert segmentation.shape == image.shape[1:]
    before = (folder / "case_3.npz").stat().st_mtime_ns
    run()
    assert (folder / "case_3.npz").stat().st_mtime_ns == before


def test_a_scan_that_only_the_next_stage_has(trainer, tiny):
    run()
    for file in tiny.images.iterdir():
        file.unlink()
    tiny.images.rmdir()
    for file in (tiny.preprocessed / "nnUNetPlans_3d_lowres_tiny_unlabeled").glob("scan_1*"):
        file.unlink()
    with pytest.raises(UserError, match=r"(?s)not for 3d_lowres_tiny: run nnunet_dvcl preprocess.*scan_1"):
        run()


def test_a_next_stage_that_is_younger_than_the_model(trainer, folder):
    """The plans beside the model do not know it."""
    file = folder.parents[2] / "plans.json"
    plans = json.loads(file.read_text())
    del plans["configurations"]["cascade_tiny"], plans["configurations"]["3d_lowres_tiny"]["next_stage"]
    file.write_text(json.dumps(plans))
    run()
    assert contents(folder).keys() == UNLABELED


def test_scans_that_the_next_stage_does_not_use(trainer, folder, tiny):
    plans = tiny.plans
    plans["configurations"]["cascade_tiny"]["ssl"] = {"unlabeled_folder": False}
    tiny.write_plans(plans)
    run()
    assert contents(folder).keys() == {"case_3", "case_4"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("901", "3d_lowres_tiny", 1, "nnUNetTrainerCPS"), "fold_1 has no checkpoint"),
        (("901", "3d_tiny", 0, "nnUNetTrainerCPS"), "has no checkpoint"),
        (("902", "3d_lowres_tiny", 0, "nnUNetTrainerCPS"), "902"),
        (
            ("901", "3d_lowres_tiny", 0, "nnUNetTrainerCPS", "nnUNetPlans", "checkpoint_best.pth"),
            "has no checkpoint_best",
        ),
    ],
)
def test_wrong_arguments(trainer, arguments, message):
    with pytest.raises(UserError, match=message):
        predict_next_stage(*arguments, device="cpu")


def test_no_next_stage(trainer, tiny):
    plans = tiny.plans
    plans["configurations"]["cascade_tiny"]["previous_stage"] = None
    tiny.write_plans(plans)
    with pytest.raises(UserError, match=r"no next stage that uses what 3d_lowres_tiny predicts.*with one: none"):
        run()


def test_no_rank_waits_longer_than_for_one_case(monkeypatch):
    """Also one that has less to do, or nothing: all meet after each case."""
    for number in (0, 1, 3):
        met = []
        monkeypatch.setattr(next_stage.distributed, "gather_objects", lambda own: [own, 3])
        monkeypatch.setattr(next_stage.distributed, "barrier", lambda met=met: met.append(True))
        cases = [f"scan_{i}" for i in range(number)]
        done = []
        for case in next_stage._in_step(cases):
            assert len(met) == len(done)
            done.append(case)
        assert done == cases
        assert len(met) == 3
