import multiprocessing
import os
import pickle
import time

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.data_loader import DataLoader
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_dvcl.data import (
    UnlabeledDataset,
    UnlabeledLoader,
    allowed_workers,
    divide_workers,
    get_unlabeled_dataset,
    start_augmenter,
    stop_augmenter,
    unlabeled_transforms,
    with_own_random_numbers,
)
from nnunet_dvcl.data.loader import OwnRandomNumbers
from nnunet_dvcl.trainers import nnUNetTrainerCPS, nnUNetTrainerCPS_Paper, nnUNetTrainerSupervised

WITHHELD = {"train": ["case_0", "case_1"], "val": ["case_5"], "unlabeled": ["case_2", "case_3"]}


def training_transforms(patch_size, dummy_2d=False, use_mask_for_norm=None):
    rotation = (-np.pi, np.pi)
    mirror_axes = tuple(range(len(patch_size)))
    return nnUNetTrainer.get_training_transforms(
        patch_size, rotation, None, mirror_axes, dummy_2d, use_mask_for_norm=use_mask_for_norm
    )


def make_loader(tiny, configuration="3d_tiny", initial=None, final=None, transforms=None, batch_size=2, keep=None):
    plans_manager, configuration_manager = tiny.managers(configuration)
    dataset_json = tiny.dataset_json
    dataset = get_unlabeled_dataset(plans_manager, configuration_manager, dataset_json, 0, 1, str)
    if keep:
        dataset.identifiers = keep
    final = final or configuration_manager.patch_size
    return UnlabeledLoader(
        dataset,
        batch_size,
        initial or final,
        final,
        plans_manager.get_label_manager(dataset_json),
        transforms=transforms,
    )


def draw(loader, seed=0, batches=3):
    np.random.seed(seed)
    torch.manual_seed(seed)
    return [next(loader) for _ in range(batches)]


@pytest.mark.parametrize(("configuration", "patch"), [("2d_tiny", [16, 16]), ("3d_tiny", [16, 16, 16])])
def test_batch(tiny_dataset, configuration, patch):
    transforms = unlabeled_transforms(training_transforms(patch))
    initial = [24] * len(patch)
    loader = make_loader(tiny_dataset, configuration, initial, patch, transforms, batch_size=3)
    for batch in draw(loader):
        assert batch["data"].shape == batch["target"].shape == (3, 1, *patch)
        assert batch["data"].dtype == torch.float32
        assert batch["target"].dtype == torch.int16
        assert batch["data"].isfinite().all()
        assert set(batch["target"].unique().tolist()) <= {-1, 0}
        assert set(batch["keys"]) <= set(tiny_dataset.scans)


def test_both_storages(tiny_dataset, dataset_class):
    tiny_dataset.write_splits(WITHHELD)
    batch = draw(make_loader(tiny_dataset, batch_size=16), batches=1)[0]
    assert {"case_2", "case_3"} & set(batch["keys"])
    assert set(tiny_dataset.scans) & set(batch["keys"])
    assert set(batch["target"].unique().tolist()) <= {-1, 0}


def test_labels_have_no_influence(tiny_dataset, dataset_class):
    """With other labels and other class locations, the same seed gives the same batches."""
    tiny_dataset.write_splits(WITHHELD)
    transforms = unlabeled_transforms(training_transforms([16, 16, 16]))
    arguments = {"initial": [20, 20, 20], "transforms": transforms, "keep": ["case_2", "case_3"]}
    before = draw(make_loader(tiny_dataset, **arguments))
    scramble_labels(tiny_dataset, dataset_class, WITHHELD["unlabeled"])
    after = draw(make_loader(tiny_dataset, **arguments))
    for one, other in zip(before, after, strict=True):
        assert list(one["keys"]) == list(other["keys"])
        assert torch.equal(one["data"], other["data"])
        assert torch.equal(one["target"], other["target"])


def scramble_labels(tiny, dataset_class, cases):
    folder = tiny.preprocessed / "nnUNetPlans_3d_fullres"
    rng = np.random.default_rng(0)
    for case in cases:
        data, seg, _, properties = dataset_class(str(folder), [case]).load_case(case)
        data, seg = np.array(data[:]), np.array(seg[:])
        seg[seg >= 0] = rng.integers(0, 9, (seg >= 0).sum())
        properties["class_locations"] = {1: [[0, 0, 0, 0]]}
        for file in folder.glob(f"{case}*"):
            file.unlink()
        kwargs = {"chunks": data.shape, "blocks": data.shape} if dataset_class is nnUNetDatasetBlosc2 else {}
        dataset_class.save_case(data, seg, properties, str(folder / case), **kwargs)


@pytest.mark.parametrize(("configuration", "patch"), [("2d_tiny", [40, 48]), ("3d_tiny", [30, 40, 48])])
def test_mask_is_where_the_patch_is_padded(tiny_dataset, configuration, patch):
    """No transforms, a patch larger than any image: -1 in the padding and in the corners outside, 0 elsewhere."""
    loader = make_loader(tiny_dataset, configuration, final=patch, batch_size=4)
    boxes = record_boxes(loader)
    batch = draw(loader, batches=1)[0]
    for data, target, case, box in zip(*batch.values(), boxes, strict=True):
        image, mask = (stored[0] for stored in loader._data.load_case(case)[:2])
        expected_data = np.zeros([upper - lower for lower, upper in box], np.float32)
        expected_mask = np.full(expected_data.shape, -1)
        from_image = tuple(slice(max(lower, 0), upper) for lower, upper in box)
        to_patch = tuple(slice(-min(lower, 0), n - lower) for (lower, _), n in zip(box, mask.shape, strict=True))
        expected_data[to_patch] = image[from_image]
        expected_mask[to_patch] = mask[from_image]
        np.testing.assert_array_equal(data[0].numpy(), expected_data.reshape(patch))
        np.testing.assert_array_equal(target[0].numpy(), expected_mask.reshape(patch))
        assert 0.2 < (expected_mask == -1).mean() < 1


def record_boxes(loader):
    """The list to which each drawn box [[lower, upper], ...] is appended."""
    boxes = []
    get_bbox = loader.get_bbox

    def record(*args, **kwargs):
        lower, upper = get_bbox(*args, **kwargs)
        boxes.append(list(zip(lower, upper, strict=True)))
        return lower, upper

    loader.get_bbox = record
    return boxes


@pytest.mark.parametrize(("patch", "dummy_2d"), [([40, 48], False), ([30, 40, 48], False), ([8, 48, 48], True)])
def test_mask_survives_augmentation(tiny_dataset, patch, dummy_2d):
    transforms = unlabeled_transforms(training_transforms(patch, dummy_2d))
    loader = make_loader(tiny_dataset, f"{len(patch)}d_tiny", final=patch, transforms=transforms, batch_size=4)
    for batch in draw(loader):
        outside = batch["target"] == -1
        assert ((batch["target"] == 0) | outside).all()
        assert (outside.flatten(1).float().mean(1) > 0.2).all()
        assert (outside.flatten(1).float().mean(1) < 1).all()


def test_image_stays_masked_outside_where_the_plans_say_so(tiny_dataset):
    transforms = unlabeled_transforms(training_transforms([30, 40, 48], use_mask_for_norm=[True]))
    batch = draw(make_loader(tiny_dataset, final=[30, 40, 48], transforms=transforms))[0]
    assert (batch["data"][batch["target"] == -1] == 0).all()


def test_only_the_removal_of_padding_is_dropped():
    transforms = training_transforms([16, 16, 16], use_mask_for_norm=[True])
    kept = unlabeled_transforms(transforms).transforms
    dropped = [t for t in transforms.transforms if t not in kept]
    assert [type(t).__name__ for t in dropped] == ["RemoveLabelTransform"]
    assert len(transforms.transforms) == len(kept) + 1


def test_ignore_label_does_not_steer_the_patches(tiny_dataset):
    plans_manager, _ = tiny_dataset.managers()
    dataset_json = tiny_dataset.dataset_json
    dataset_json["labels"]["ignore"] = 3
    label_manager = plans_manager.get_label_manager(dataset_json)
    assert label_manager.has_ignore_label
    folder = str(tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres")
    dataset = UnlabeledDataset([nnUNetDatasetBlosc2(folder, ["case_0"])])
    next(UnlabeledLoader(dataset, 2, [16] * 3, [16] * 3, label_manager))


def test_every_patch_can_be_drawn(tiny_dataset):
    """No oversampling of foreground: the patches reach from one end of the image to the other."""
    loader = make_loader(tiny_dataset, batch_size=300, final=[8, 8, 8], keep=["scan_0"])
    boxes = record_boxes(loader)
    draw(loader, batches=1)
    assert np.min(boxes, (0, 2)).tolist() == [0, 0, 0]
    assert tuple(np.max(boxes, (0, 2))) == loader._data.load_case("scan_0")[0].shape[1:]


@pytest.mark.parametrize(
    ("total", "labeled", "unlabeled", "expected"),
    [
        (12, 2, 2, (6, 6)),
        (12, 2, 4, (4, 8)),
        (3, 2, 2, (2, 1)),
        (1, 2, 2, (1, 1)),
        (0, 2, 2, (0, 0)),
        (4, 1, 99, (1, 3)),
    ],
)
def test_divide_workers(total, labeled, unlabeled, expected):
    assert divide_workers(total, labeled, unlabeled) == expected


@pytest.mark.parametrize("total", range(1, 20))
def test_workers_are_neither_lost_nor_made(total):
    for batches in ((1, 1), (2, 7), (50, 1)):
        parts = divide_workers(total, *batches)
        assert sum(parts) == max(total, 2)
        assert min(parts) >= 1


@pytest.mark.parametrize("before", [None, "5"])
def test_allowed_workers(monkeypatch, before):
    variable = "nnUNet_n_proc_DA"
    monkeypatch.delenv(variable, raising=False)
    if before:
        monkeypatch.setenv(variable, before)
    with allowed_workers(1):
        assert get_allowed_n_proc_DA() == 1
    assert os.environ.get(variable) == before
    with pytest.raises(KeyError), allowed_workers(1):
        {}["missing"]
    assert os.environ.get(variable) == before


def test_no_workers(tiny_dataset):
    augmenter = start_augmenter(make_loader(tiny_dataset), 0, pin_memory=False)
    assert isinstance(augmenter, SingleThreadedAugmenter)
    assert next(augmenter)["data"].shape == (2, 1, 16, 16, 16)
    stop_augmenter(augmenter)
    stop_augmenter(None)


def test_workers_are_shut_down(tiny_dataset):
    before = set(multiprocessing.active_children())
    augmenter = start_augmenter(make_loader(tiny_dataset), 2, pin_memory=False)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    first, second = next(augmenter), next(augmenter)
    assert first["target"].shape == (2, 1, 16, 16, 16)
    assert not torch.equal(first["data"], second["data"])
    stop_augmenter(augmenter)
    assert set(multiprocessing.active_children()) == before
    stop_augmenter(augmenter)


def test_loader_travels_to_spawned_workers(tiny_dataset):
    """Where processes are not forked (macOS, Windows, Python 3.14) the loader is pickled."""
    transforms = unlabeled_transforms(training_transforms([16, 16, 16]))
    loader = make_loader(tiny_dataset, transforms=transforms)
    assert next(pickle.loads(pickle.dumps(loader)))["data"].shape == (2, 1, 16, 16, 16)


class Drawing(DataLoader):
    """A stream of what its worker draws: its process, and three of torch's random numbers."""

    def __init__(self, transforms):
        super().__init__(list(range(3)), 1, 1, None, True, False, True)
        self.transforms = transforms

    def generate_train_batch(self):
        drawn = self.transforms(image=torch.zeros(1, 4, 4), segmentation=torch.zeros(1, 4, 4, dtype=torch.int16))
        return {"process": os.getpid(), "drawn": tuple(drawn["image"].flatten()[:3].tolist())}


class Draw(ImageOnlyTransform):
    def _apply_to_image(self, img, **params):
        return torch.rand_like(img)


def test_each_worker_of_both_streams_draws_numbers_of_its_own():
    transforms = with_own_random_numbers(ComposeTransforms([Draw()]))
    firsts, deadline = {}, time.monotonic() + 60
    for workers, seen in ((3, transforms), (6, unlabeled_transforms(transforms))):
        augmenter = start_augmenter(Drawing(seen), 3, pin_memory=False)
        try:
            while len(firsts) < workers:  # on a busy machine one worker may make most of the batches
                assert time.monotonic() < deadline
                batch = next(augmenter)
                firsts.setdefault(batch["process"], batch["drawn"])
        finally:
            stop_augmenter(augmenter)
    assert len(set(firsts.values())) == 6


def test_the_process_that_trains_keeps_its_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(1, 4, 4)
    torch.manual_seed(0)
    transforms = with_own_random_numbers(ComposeTransforms([Draw()]))
    assert torch.equal(transforms(image=torch.zeros(1, 4, 4))["image"], expected)


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerSupervised, nnUNetTrainerCPS, nnUNetTrainerCPS_Paper])
def test_every_trainer_gives_its_workers_numbers_of_their_own(start, trainer_class):
    trainer = start(trainer_class, "2d_tiny")
    for stream in ("train", "unlabeled"):
        if loader := getattr(trainer, f"dataloader_{stream}", None):
            assert sum(isinstance(t, OwnRandomNumbers) for t in loader.data_loader.transforms.transforms) == 1
