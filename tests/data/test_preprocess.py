import errno
import functools
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from nnunetv2.training.dataloading import nnunet_dataset
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dvcl import lock, progress
from nnunet_dvcl.data import preprocess_unlabeled, processes
from nnunet_dvcl.data.preprocess import UnlabeledScans
from nnunet_dvcl.data.storage import complete_cases
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.lock import is_held, locked


def run(num_processes=1, configuration="3d_tiny"):
    return preprocess_unlabeled("901", configuration, num_processes=num_processes)


def contents(folder):
    """Name -> (bytes, mtime) of all visible files."""
    files = [entry for entry in os.scandir(folder) if entry.is_file()]
    return {entry.name: (open(entry.path, "rb").read(), entry.stat().st_mtime_ns) for entry in files}


def test_same_as_nnunets_own_preprocessing(tiny_dataset, dataset_class):
    """A scan that is preprocessed alone equals the same image preprocessed as a labeled case."""
    case = tiny_dataset.labeled[0]
    (tiny_dataset.raw / "imagesTr" / f"{case}_0000.nii.gz").rename(tiny_dataset.images / "copy_0000.nii.gz")
    folder = run()
    assert folder == str(tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled")
    assert infer_dataset_class(folder) is dataset_class
    assert sorted(dataset_class.get_identifiers(folder)) == ["copy", *tiny_dataset.scans]
    labeled = dataset_class(str(tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres")).load_case(case)
    alone = dataset_class(folder).load_case("copy")
    np.testing.assert_array_equal(alone[0][:], labeled[0][:])
    np.testing.assert_array_equal(alone[1][:], np.minimum(labeled[1][:], 0))
    assert (alone[1][:] == -1).any(), "the corners of the phantom are outside"
    assert "class_locations" not in alone[3]


def test_2d_in_a_worker_process(tiny_dataset):
    for scan in ("scan_1", "scan_2"):
        (tiny_dataset.images / f"{scan}_0000.nii.gz").unlink()
    folder = run(num_processes=2, configuration="2d_tiny")
    assert folder.endswith("nnUNetPlans_2d_unlabeled")
    assert complete_cases(folder, nnUNetDatasetBlosc2) == {"scan_0"}
    assert not multiprocessing.active_children()


def test_it_tells_how_long_all_scans_take(tiny_dataset, monkeypatch, capsys):
    monkeypatch.setattr(progress, "TIMED", 2)
    run()
    assert re.search(r"Unlabeled scans: about \d+ s in all", capsys.readouterr().out)


def test_second_run_touches_nothing(tiny_dataset, dataset_class):
    before = contents(run())
    assert not is_held(tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled/.nnunet_dvcl/lock")
    assert len(before) == len(tiny_dataset.scans) * (3 if dataset_class is nnUNetDatasetBlosc2 else 4)
    assert contents(run()) == before


def test_only_what_is_missing(tiny_dataset, dataset_class):
    folder = run()
    before = contents(folder)
    lost = next(name for name in sorted(before) if name.startswith("scan_1") and not name.endswith(".pkl"))
    if lost.endswith(".npy"):
        lost = "scan_1.npz"
    os.remove(os.path.join(folder, lost))
    assert complete_cases(folder, dataset_class) == {"scan_0", "scan_2"}
    after = contents(run())
    assert {name for name in after if before[name] != after[name]} == {n for n in before if n.startswith("scan_1")}


def test_case_cut_off_while_saving_does_not_count(tiny_dataset, dataset_class, monkeypatch):
    def cut_off(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(nnunet_dataset, "write_pickle", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.undo()
    for name, value in tiny_dataset.env.items():
        monkeypatch.setenv(name, value)
    folder = str(tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled")
    assert contents(folder) == {}
    assert complete_cases(run(), dataset_class) == set(tiny_dataset.scans)


def test_case_cut_off_while_moving_does_not_count(tiny_dataset, monkeypatch):
    replace = os.replace

    def cut_off(source, target):
        if str(target).endswith(".pkl"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(os, "replace", replace)
    folder = str(tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled")
    assert len(contents(folder)) == 2
    assert complete_cases(folder, nnUNetDatasetBlosc2) == set()
    assert complete_cases(run(), nnUNetDatasetBlosc2) == set(tiny_dataset.scans)


def test_leftovers_of_a_killed_run_are_removed(tiny_dataset):
    hidden = tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled" / ".nnunet_dvcl"
    (hidden / "case_killed").mkdir(parents=True)
    (hidden / "case_killed" / "scan_0.b2nd").write_bytes(b"half")
    run()
    assert sorted(entry.name for entry in hidden.iterdir()) in (["lock", "manifest.json"], ["manifest.json"])


def test_without_locks_scans_are_preprocessed_with_a_warning_and_nobodys_files_removed(
    tiny_dataset, monkeypatch, capsys
):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    folder = tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled" / ".nnunet_dvcl"
    (folder / "case_of_another_process").mkdir(parents=True)
    monkeypatch.setattr(lock.fcntl, "flock", flock)
    run()
    assert "file system without locks" in capsys.readouterr().out
    assert (folder / "case_of_another_process").is_dir()


def test_kill_9_and_resume(tiny_dataset):
    """Killed with two workers in the middle: no worker stays, whole cases are kept, the next run does the rest."""
    for i in range(60):
        os.link(tiny_dataset.images / "scan_0_0000.nii.gz", tiny_dataset.images / f"more_{i:02d}_0000.nii.gz")
    code = "from nnunet_dvcl.data import preprocess_unlabeled as p; p('901', '3d_tiny', num_processes=2)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **tiny_dataset.env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    folder = str(tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled")
    deadline = time.monotonic() + 60
    while not complete_cases(folder, nnUNetDatasetBlosc2) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    # The workers hold the pipe too: it ends with the last of them.
    process.communicate(timeout=30)
    kept = complete_cases(folder, nnUNetDatasetBlosc2)
    assert 0 < len(kept) < 63
    before = contents(folder)
    assert len(complete_cases(run(), nnUNetDatasetBlosc2)) == 63
    after = contents(folder)
    assert all(after[f"{case}.pkl"] == before[f"{case}.pkl"] for case in kept)


def test_dead_worker(tiny_dataset, monkeypatch):
    monkeypatch.setattr(processes, "exit_with_parent", functools.partial(os._exit, 1))
    with pytest.raises(UserError, match=r"(?s)memory.*fewer workers"):
        run(num_processes=2)


def test_second_process_waits(tiny_dataset, capsys):
    hidden = tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled" / ".nnunet_dvcl"
    hidden.mkdir(parents=True)
    with locked(hidden / "lock"):
        second = threading.Thread(target=run)
        second.start()
        time.sleep(0.5)
        assert second.is_alive()
        assert sorted(p.name for p in hidden.iterdir()) == ["lock"]
    second.join(30)
    assert complete_cases(str(hidden.parent), nnUNetDatasetBlosc2) == set(tiny_dataset.scans)
    assert "waiting" in capsys.readouterr().out


def test_finished_folder_may_be_read_only(tiny_dataset, monkeypatch):
    run()

    def forbidden(*_, **__):
        raise PermissionError

    monkeypatch.setattr(os, "makedirs", forbidden)
    monkeypatch.setattr(lock, "acquire", forbidden)
    run()


def test_other_plans(tiny_dataset):
    folder = run()
    before = contents(folder)
    plans = tiny_dataset.plans
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.0, 1.0]
    plans["foreground_intensity_properties_per_channel"]["0"]["mean"] = 5.0
    tiny_dataset.write_plans(plans)
    with pytest.raises(UserError, match="other plans") as error:
        run()
    assert "spacing: [1.0, 1.0, 1.0] in the folder, [2.0, 1.0, 1.0] in the plans" in str(error.value)
    assert "foreground_intensity_properties_per_channel.0.mean" in str(error.value)
    assert "normalization" not in str(error.value)
    assert "Delete that folder" in str(error.value)
    assert folder in str(error.value)
    assert contents(folder) == before


def test_patch_size_and_architecture_do_not_matter(tiny_dataset):
    before = contents(run(configuration="3d_tiny"))
    assert contents(run(configuration="3d_fullres")) == before


def test_labeled_cases_in_another_format_than_before(tiny_dataset, request):
    run()
    request.getfixturevalue("as_numpy")
    with pytest.raises(UserError, match="dataset_class: nnUNetDatasetBlosc2 in the folder, nnUNetDatasetNumpy in the"):
        run()


def test_folder_without_manifest(tiny_dataset):
    folder = run()
    os.remove(os.path.join(folder, ".nnunet_dvcl", "manifest.json"))
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        run()


def test_what_a_mac_leaves_behind_is_no_scan(tiny_dataset):
    run()
    folder = tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled"
    for file in list(folder.iterdir()):
        if file.is_file():
            (folder / f"._{file.name}").write_bytes(b"Mac OS X")
    assert complete_cases(str(folder), nnUNetDatasetBlosc2) == set(tiny_dataset.scans)
    shutil.rmtree(tiny_dataset.images)
    plans = PlansManager(str(tiny_dataset.preprocessed / "nnUNetPlans.json"))
    scans = UnlabeledScans(plans, plans.get_configuration("3d_fullres"), tiny_dataset.dataset_json)
    assert scans.preprocessed(1, print) == sorted(tiny_dataset.scans)


def test_scan_that_is_labeled_too(tiny_dataset):
    (tiny_dataset.images / "scan_0_0000.nii.gz").rename(tiny_dataset.images / "case_0_0000.nii.gz")
    with pytest.raises(UserError, match="case_0"):
        run()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("902", "3d_tiny"), "902"),
        (("Tiny", "3d_tiny"), "Tiny"),
        (("901", "3d_huge"), "3d_huge.*They have: 2d, 3d_fullres"),
        (("901", "3d_tiny", "OtherPlans"), r"OtherPlans\.json does not exist"),
    ],
)
def test_wrong_arguments(tiny_dataset, arguments, message):
    with pytest.raises(UserError, match=message):
        preprocess_unlabeled(*arguments)


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_folders_not_set(tiny_dataset, monkeypatch, variable):
    monkeypatch.delenv(variable)
    with pytest.raises(UserError, match=f"{variable} is not set"):
        run()


def test_no_scans(tiny_dataset):
    for file in tiny_dataset.images.iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"imagesTr_unlabeled/CASE_0000\.nii\.gz"):
        run()


def test_labeled_cases_not_preprocessed(tiny_dataset):
    folder = tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres"
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(UserError, match="nnUNetv2_preprocess"):
        run()
