"""Plans, data and folds of every kind that nnU-Net knows, through our trainers: docs/reference/supported.md."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert3DTo2DTransform
from contract import SHORT, check_contract, students
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncM,
)
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.lr_scheduler.warmup import Lin_incr_LRScheduler, PolyLRScheduler_offset
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import AbstractPrimus
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch.nn.utils import parameters_to_vector

import nnunet_dvcl.trainers as trainers
from nnunet_dvcl.data import NumpyDataset
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.networks import unwrap
from nnunet_dvcl.trainers import (
    nnUNetTrainerBaCon,
    nnUNetTrainerCCL,
    nnUNetTrainerCL_VCL,
    nnUNetTrainerCLD,
    nnUNetTrainerCPS,
    nnUNetTrainerDAN,
    nnUNetTrainerDHC,
    nnUNetTrainerDTC,
    nnUNetTrainerDVCL,
    nnUNetTrainerDVCL_SameView,
    nnUNetTrainerMagicNet,
    nnUNetTrainerMT,
    nnUNetTrainerSASSNet,
    nnUNetTrainerSupervised,
    nnUNetTrainerU2PL,
    nnUNetTrainerUAMT,
    nnUNetTrainerUGPCL,
)
from nnunet_dvcl.trainers.base import Host, SignedDistances

IMAGES = "nnUNetPlans_3d_fullres"
EACH_STEP = [nnUNetTrainerSupervised, nnUNetTrainerCPS, nnUNetTrainerDVCL]
"""The three ways from a batch to the losses: nnU-Net's own, two networks, two networks and their features."""


def change(tiny, arch: dict | None = None, configuration: str = "3d_tiny", **values) -> None:
    """Other values in the plans, the architecture's under `arch`; a smaller patch unless one is given."""
    plans = tiny.plans
    own = plans["configurations"][configuration]
    own |= {"patch_size": [8] * 3 if configuration == "3d_tiny" else [16] * 2} | values
    own["architecture"]["arch_kwargs"] |= arch or {}
    tiny.write_plans(plans)


def rewrite_cases(tiny, new) -> None:
    """`new(image, labels)` in place of each case of the 3d_fullres folder, as nnU-Net would have preprocessed it."""
    folder = tiny.preprocessed / IMAGES
    foreground = PlansManager(tiny.plans).get_label_manager(tiny.dataset_json).foreground_labels
    dataset = nnUNetDatasetBlosc2(str(folder))
    for case in dataset.identifiers:
        data, labels, _, properties = dataset.load_case(case)
        data, labels = new(data[:], labels[:])
        for file in folder.glob(f"{case}[._]*"):  # a Blosc2 file cannot be written over
            file.unlink()
        properties["class_locations"] = DefaultPreprocessor._sample_foreground_locations(labels, foreground)
        dataset.save_case(data, labels, properties, str(folder / case), chunks=data.shape, blocks=data.shape)


def write_dataset_json(tiny, **values) -> None:
    for folder in (tiny.raw, tiny.preprocessed):
        (folder / "dataset.json").write_text(json.dumps(tiny.dataset_json | values))


@pytest.fixture
def contract(request):
    """``contract(trainer_class, configuration="3d_tiny", fold="all", **ssl)``, on the data set as it is then."""

    def check(trainer_class, configuration="3d_tiny", fold="all", **ssl):
        build = request.getfixturevalue("build_trainer")  # preprocesses the scans
        return check_contract(partial(build, trainer_class, configuration, fold, **SHORT | ssl))

    return check


# ---------------------------------------------------------------- networks


def test_residual_encoder_plans(tiny_dataset, contract, monkeypatch):
    """Planned by nnU-Net's ResEnc M planner; its plans share the preprocessed cases."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    nnUNetPlannerResEncM(tiny_dataset.name).plan_experiment()
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    planned = tiny_dataset.preprocessed / "nnUNetResEncUNetMPlans.json"
    tiny_dataset.write_plans(json.loads(planned.read_text()))
    architecture = tiny_dataset.plans["configurations"]["3d_fullres"]["architecture"]
    assert architecture["network_class_name"].endswith("ResidualEncoderUNet")
    stages = architecture["arch_kwargs"]["n_stages"]
    change(tiny_dataset, {"features_per_stage": [4] * stages}, "3d_fullres", patch_size=[8] * 3, batch_size=2)
    trainer = contract(nnUNetTrainerDVCL, "3d_fullres")
    assert all(isinstance(unwrap(network), ResidualEncoderUNet) for network in trainer.students().values())


@pytest.mark.parametrize("trainer_class", EACH_STEP)
def test_dropout(tiny_dataset, contract, trainer_class):
    change(tiny_dataset, {"dropout_op": "torch.nn.Dropout3d", "dropout_op_kwargs": {"p": 0.1}})
    trainer = contract(trainer_class)
    for network in students(trainer).values():
        assert any(isinstance(module, torch.nn.Dropout3d) for module in network.modules())


@pytest.mark.parametrize("trainer_class", EACH_STEP)
def test_batch_norm_in_the_plans(tiny_dataset, contract, trainer_class):
    change(tiny_dataset, {"norm_op": "torch.nn.BatchNorm2d"}, "2d_tiny")
    trainer = contract(trainer_class, "2d_tiny")
    assert any(key.endswith("running_mean") for key in trainer.network.state_dict())


def test_batch_norm_by_nnunets_trainer(tiny_dataset, contract):
    """Prediction then needs that trainer of nnU-Net's, which the checkpoint names."""

    class nnUNetTrainerDVCL_BN(nnUNetTrainerDVCL, nnUNetTrainerBN):
        pass

    change(tiny_dataset)
    trainer = contract(nnUNetTrainerDVCL_BN)
    for network in trainer.students().values():
        assert any(isinstance(module, torch.nn.BatchNorm3d) for module in network.modules())
    checkpoint = torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainerBN"


class TinyPrimus(AbstractPrimus):
    @staticmethod
    def build_network_architecture(
        plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ):
        return Primus(num_input_channels, 12, (8, 8, 8), num_output_channels, 1, 2, configuration_manager.patch_size)


class OnlyTheNetwork:
    build_network_architecture = staticmethod(TinyPrimus.build_network_architecture)


WITHIN_THE_NETWORK = [
    trainer
    for trainer in (getattr(trainers, name) for name in trainers.__all__)
    if issubclass(
        trainer,
        (trainers.nnUNetTrainerCPS_HqCL, trainers.nnUNetTrainerUAMT, nnUNetTrainerMagicNet, SignedDistances, Host),
    )
]
"""What looks at features, or drops them."""


@pytest.mark.parametrize("trainer_class", WITHIN_THE_NETWORK)
def test_a_network_without_a_unets_decoder_is_refused_before_any_work(tiny_dataset, trainer_class):
    """Whether nnU-Net's Primus trainers bring it or a class that builds the network alone."""
    for bases in ((trainer_class, TinyPrimus), (OnlyTheNetwork, trainer_class)):
        plans = {**tiny_dataset.plans, "continue_training": False}
        trainer = type("Mixed", bases, {})(plans, "3d_tiny", 0, tiny_dataset.dataset_json, torch.device("cpu"))
        with pytest.raises(NotImplementedError, match=r"Primus has no decoder\.seg_layers.*one of nnU-Net's U-Nets"):
            trainer.on_train_start()
    assert not list(tiny_dataset.preprocessed.glob("*_unlabeled")), "nothing was preprocessed"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    "trainer_class",
    [nnUNetTrainerSupervised, nnUNetTrainerCPS, nnUNetTrainerMT, nnUNetTrainerDAN, nnUNetTrainerCLD],
)
def test_a_method_without_features_trains_any_network(tiny_dataset, build_trainer, trainer_class, optimizer):
    """With nnU-Net's Primus trainers come their warm-up and, where the plans name no other, their optimizer."""
    trainer = build_trainer(type("Mixed", (trainer_class, TinyPrimus), {}), optimizer=optimizer)
    trainer.warmup_duration_whole_net = 1
    trainer.on_train_start()
    schedules = []
    for trainer.current_epoch in range(2):
        before = {name: parameters_to_vector(network.parameters()) for name, network in students(trainer).items()}
        trainer.on_train_epoch_start()
        assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
        for name, network in students(trainer).items():
            assert not torch.equal(parameters_to_vector(network.parameters()), before[name]), name
        schedules.append(type(trainer.lr_scheduler))
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    theirs = [Lin_incr_LRScheduler, PolyLRScheduler_offset]
    assert schedules == (theirs if optimizer == "sgd" else [PolyLRScheduler] * 2)


def test_what_an_own_network_lacks_for_deep_supervision_is_said(build_trainer):
    trainer = build_trainer(type("Mixed", (OnlyTheNetwork, nnUNetTrainerCPS), {}))
    with pytest.raises(NotImplementedError, match=r"Primus has no decoder.*override set_deep_supervision_enabled"):
        trainer.on_train_start()


# ---------------------------------------------------------------- patches and batches


ANISOTROPIC = {"kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}


@pytest.mark.parametrize(
    ("trainer_class", "ssl", "views"),
    [
        (nnUNetTrainerDVCL, {}, 1),
        (nnUNetTrainerDVCL, {"views": "weak_strong"}, 2),
        (nnUNetTrainerDVCL_SameView, {"independent_intensities": True}, 2),
    ],
)
def test_anisotropic_patches(tiny_dataset, contract, build_trainer, trainer_class, ssl, views):
    """Both streams are augmented slice by slice, as nnU-Net does where a patch is three times wider than thick."""
    change(tiny_dataset, ANISOTROPIC, patch_size=[4, 16, 16])
    trainer = contract(trainer_class, **ssl)
    assert trainer.configuration_manager.patch_size == [4, 16, 16]
    trainer = build_trainer(trainer_class, **ssl)
    trainer.on_train_start()
    for augmenter in (trainer.dataloader_train, trainer.dataloader_unlabeled):
        loader = augmenter.data_loader
        assert isinstance(loader.transforms.transforms[1], Convert3DTo2DTransform)
        assert loader.patch_size[0] == 4, "what rotations within a slice need"
        assert loader.patch_size[1] > 16
        assert next(augmenter)["data"].shape == (2, views, 4, 16, 16)


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerUAMT, nnUNetTrainerSASSNet, nnUNetTrainerMagicNet])
def test_anisotropic_patches_of_other_methods(tiny_dataset, contract, trainer_class):
    """Dropout, adversary and signed distances; the distances are those of voxels that are three times as thick."""
    change(tiny_dataset, {}, "3d_fullres", patch_size=[4, 16, 16], spacing=[3.0, 1.0, 1.0])
    change(tiny_dataset, ANISOTROPIC, patch_size=[4, 16, 16])
    trainer = contract(trainer_class)
    assert trainer.configuration_manager.spacing == [3.0, 1.0, 1.0]


def test_a_patch_that_magicnet_cannot_cut_is_refused(tiny_dataset, build_trainer):
    change(tiny_dataset, configuration="2d_tiny", patch_size=[8, 4])
    with pytest.raises(NotImplementedError, match=r"patch size \[8, 4\] is too small to be cut into cubes"):
        build_trainer(nnUNetTrainerMagicNet, "2d_tiny").on_train_start()


def test_several_input_channels(tiny_dataset, contract):
    """Each scan is a file a channel, and each channel is normalized by its own scheme."""
    plans = tiny_dataset.plans
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization", "ZScoreNormalization"]
    plans["configurations"]["3d_fullres"]["use_mask_for_norm"] = [False, False]
    plans["configurations"]["2d"] |= {
        key: plans["configurations"]["3d_fullres"][key] for key in ("normalization_schemes", "use_mask_for_norm")
    }
    properties = plans["foreground_intensity_properties_per_channel"]
    properties["1"] = properties["0"]
    tiny_dataset.write_plans(plans)
    change(tiny_dataset)
    write_dataset_json(tiny_dataset, channel_names={"0": "CT", "1": "MR"})
    for folder in ("imagesTr", "imagesTr_unlabeled"):
        for file in (tiny_dataset.raw / folder).glob("*_0000.nii.gz"):
            (file.parent / file.name.replace("_0000", "_0001")).write_bytes(file.read_bytes())
    rewrite_cases(tiny_dataset, lambda image, labels: (np.concatenate((image, 1 - image)), labels))

    trainer = contract(nnUNetTrainerDVCL)
    assert trainer.num_input_channels == 2
    unlabeled = next(trainer.dataloader_unlabeled)["data"]
    assert unlabeled.shape == (2, 2, 8, 8, 8)
    assert not torch.equal(unlabeled[:, 0], unlabeled[:, 1])


@pytest.mark.parametrize("trainer_class", EACH_STEP)
def test_batch_size_one(tiny_dataset, contract, trainer_class):
    change(tiny_dataset, batch_size=1)
    trainer = contract(trainer_class)
    assert trainer.batch_size == 1
    if trainer_class is not nnUNetTrainerSupervised:
        assert len(next(trainer.dataloader_unlabeled)["data"]) == 1


@pytest.mark.parametrize("ssl", [{"views": "weak_strong"}, {"cutmix_probability": 0.5}])
def test_two_decoders_have_one_view(build_trainer, ssl):
    with pytest.raises(UserError, match="on one encoder, cannot have"):
        build_trainer(nnUNetTrainerUGPCL, "2d_tiny", **ssl).initialize()


# ---------------------------------------------------------------- labels

OF_CONTRAST = [nnUNetTrainerU2PL, nnUNetTrainerCCL, nnUNetTrainerUGPCL, nnUNetTrainerBaCon]


@pytest.mark.parametrize(
    "trainer_class", [nnUNetTrainerDVCL, nnUNetTrainerCL_VCL, nnUNetTrainerSASSNet, nnUNetTrainerDHC, *OF_CONTRAST]
)
def test_two_classes(tiny_dataset, contract, trainer_class):
    change(tiny_dataset)
    write_dataset_json(tiny_dataset, labels={"background": 0, "organ": 1})
    rewrite_cases(tiny_dataset, lambda image, labels: (image, np.minimum(labels, 1)))
    trainer = contract(trainer_class)
    assert trainer.labels.num_classes == trainer.labels.width == 2


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerDVCL, nnUNetTrainerUAMT, nnUNetTrainerDTC, nnUNetTrainerCLD])
def test_one_region(tiny_dataset, contract, trainer_class):
    """A single sigmoid: two classes, one channel."""
    change(tiny_dataset)
    write_dataset_json(tiny_dataset, labels={"background": 0, "organ": [1, 2]}, regions_class_order=[1])
    trainer = contract(trainer_class)
    assert trainer.labels.num_classes == trainer.labels.width == 2
    assert trainer.label_manager.num_segmentation_heads == 1


@pytest.mark.parametrize(
    "trainer_class", [nnUNetTrainerDVCL, nnUNetTrainerCL_VCL, nnUNetTrainerDTC, nnUNetTrainerCLD, *OF_CONTRAST]
)
def test_fourteen_classes(tiny_dataset, contract, trainer_class):
    """As many as the paper's larger data set has; a patch holds only some of them."""
    change(tiny_dataset)
    write_dataset_json(tiny_dataset, labels={"background": 0} | {f"organ {i}": i for i in range(1, 14)})

    def split_into_slabs(image, labels):
        slab = 1 + np.arange(labels.shape[-1])[None, None, None] % 13
        return image, np.where(labels > 0, slab, labels).astype(labels.dtype)

    rewrite_cases(tiny_dataset, split_into_slabs)
    trainer = contract(trainer_class)
    assert trainer.labels.num_classes == trainer.label_manager.num_segmentation_heads == 14
    if "bank" in trainer.memory:
        assert len(trainer.memory["bank"].features) == 14


# ---------------------------------------------------------------- folders and folds


def test_blosc2_folder(tiny_dataset, contract):
    change(tiny_dataset)
    assert contract(nnUNetTrainerDVCL).dataset_class is nnUNetDatasetBlosc2


@pytest.mark.parametrize("trainer_class", EACH_STEP)
def test_numpy_folder(tiny_dataset, as_numpy, contract, build_trainer, monkeypatch, trainer_class):
    """Unpacked memory maps: where nnU-Net's own loader would let transforms write to them, ours hand out copies."""
    monkeypatch.setattr(nnUNetDatasetNumpy, "unpack_dataset", lambda *_, **__: None)  # as_numpy did, without processes
    change(tiny_dataset)
    trainer = build_trainer(trainer_class)
    trainer.initialize()
    for dataset in trainer.get_tr_and_val_datasets():
        image, labels, _, _ = dataset.load_case("case_0")
        assert image[:, :8, :8, :8].flags.writeable
        assert labels[:, :8, :8, :8].flags.writeable
    trainer = contract(trainer_class)
    assert trainer.dataset_class is NumpyDataset


def test_fold_all(tiny_dataset, contract):
    """All labeled cases train and validate; a split that withholds labels has no say, the scans are unlabeled."""
    change(tiny_dataset)
    tiny_dataset.write_splits({"train": ["case_0"], "val": ["case_1"], "unlabeled": ["case_2"]})
    trainer = contract(nnUNetTrainerDVCL, fold="all")
    train, val = trainer.do_split()
    assert sorted(train) == sorted(val) == list(tiny_dataset.labeled)
    log = Path(trainer.log_file).read_text()
    assert "Unlabeled cases: 3 of imagesTr_unlabeled, 0 of the split" in log


def test_a_fold_that_the_file_does_not_have(tiny_dataset, contract):
    """nnU-Net's random 80:20 split of all labeled cases; what other folds withhold is labeled here."""
    change(tiny_dataset)
    tiny_dataset.write_splits({"train": ["case_0"], "val": ["case_1"], "unlabeled": ["case_2"]})
    trainer = contract(nnUNetTrainerDVCL, fold=7)
    plans = {**tiny_dataset.plans, "continue_training": False}
    stock = nnUNetTrainer(plans, "3d_tiny", 7, tiny_dataset.dataset_json, torch.device("cpu"))
    train, val = trainer.do_split()
    assert (train, val) == stock.do_split()
    assert (len(train), len(val)) == (4, 2)
    log = Path(trainer.log_file).read_text()
    assert "Unlabeled cases: 3 of imagesTr_unlabeled, 0 of the split" in log


# ---------------------------------------------------------------- documentation


def test_the_page_names_each_test():
    page = (Path(__file__).parents[2] / "docs/reference/supported.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    assert named ^ {"test_contract", "test_the_page_names_each_test"} == {n for n in globals() if n.startswith("test_")}
