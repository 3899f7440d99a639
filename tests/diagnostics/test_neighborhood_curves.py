"""Figure 6 during training."""

import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch

import nnunet_dvcl.trainers as trainers
from nnunet_dvcl.diagnostics.validation_voxels import draw_validation_patches
from nnunet_dvcl.losses import voxel_entropy
from nnunet_dvcl.networks import run_with_features
from nnunet_dvcl.trainers import nnUNetTrainerDVCL

FIGURE_6 = {
    *("val_outsiders_differ", "val_neighbors_same", "val_neighbors_same_correct", "val_relevant_same"),
    *("val_ordinary_same", "val_outlier_neighbors_same", "val_outliers_wrong", "val_unreliable_wrong"),
}


def test_the_logging_page_lists_the_curves():
    page = (Path(__file__).parents[2] / "docs/reference/logging.md").read_text()
    assert sorted(re.findall(r"^\| `ssl/(val_\w+)` \|", page, re.MULTILINE)) == sorted(FIGURE_6)


def _validate(trainer):
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val))])


@pytest.mark.parametrize("name", ["DVCL", "CL_VCL", "DVCL_SimCLR"])
@pytest.mark.parametrize("configuration", ["2d_tiny", "3d_tiny"])
def test_each_epoch_logs_the_curves(start, name, configuration, capsys):
    trainer = start(getattr(trainers, f"nnUNetTrainer{name}"), configuration)
    trainer.train_step(next(trainer.dataloader_train))
    _validate(trainer)
    logged = trainer.logger.get_checkpoint()
    values = {key: logged[f"ssl/{key}"] for key in FIGURE_6}
    assert all(len(of_epoch) == 1 for of_epoch in values.values())
    for key in ("val_outsiders_differ", "val_neighbors_same", "val_neighbors_same_correct", "val_unreliable_wrong"):
        assert 0 <= values[key][0] <= 1
    assert f"val_unreliable_wrong {values['val_unreliable_wrong'][0]:.4g}" in capsys.readouterr().out


def test_off_logs_nothing_and_draws_nothing(start):
    trainer = start(nnUNetTrainerDVCL, "2d_tiny", validation_voxels=0)
    _validate(trainer)
    assert not {key for key in trainer.logger.get_checkpoint() if key.startswith("ssl/val_")}
    assert not hasattr(trainer, "validation_voxels")


def test_the_voxels_are_the_unreliable_ones_of_both_networks_with_their_truth(start):
    trainer = start(nnUNetTrainerDVCL, "2d_tiny", num_queries=10_000, queue_capacity=20_000)
    seen = {}

    def keep(features, queries):
        seen.update(features=features, queries=queries)
        return type(trainer.dvcl).neighborhoods(trainer.dvcl, features, queries)

    trainer.dvcl.neighborhoods = keep
    with torch.no_grad():
        statistics = trainer.epoch_statistics()
    assert torch.equal(seen["queries"], torch.arange(len(seen["features"])))

    expected, wrong = [], []
    labels = trainer.validation_voxels.labels
    for name, network in trainer.students().items():
        logits, features = trainer.validation_voxels.look(partial(run_with_features, network), trainer.device)
        p = logits.softmax(1)
        entropy = voxel_entropy(p)
        unreliable = entropy > entropy.mean() + 0.5 * entropy.std(correction=0)
        expected.append(trainer.companions[f"head_{name}"](features[unreliable]))
        wrong.append(p[unreliable].argmax(1) != labels[unreliable])
    expected = torch.cat(expected)
    assert expected.shape == seen["features"].shape
    # drawn in another order
    torch.testing.assert_close(expected.sort(0).values, seen["features"].sort(0).values, rtol=1e-4, atol=1e-5)
    assert statistics["val_unreliable_wrong"] == pytest.approx(torch.cat(wrong).float().mean().item(), abs=1e-6)


def test_the_voxels_are_those_of_validation_cases(start, tiny_dataset):
    tiny_dataset.write_splits({"train": ["case_0", "case_1"], "val": ["case_4", "case_5"]})
    drawn = []
    for fold in (0, "all"):
        trainer = start(nnUNetTrainerDVCL, "2d_tiny", fold=fold)
        drawn.append(torch.cat([images for images, _ in trainer.validation_voxels._batches]))
    manager = trainer.configuration_manager
    _, cases = type(trainer).get_tr_and_val_datasets(start(nnUNetTrainerDVCL, "2d_tiny", fold=0))
    assert set(cases.identifiers) == {"case_4", "case_5"}
    expected, _ = draw_validation_patches(cases, 16, manager.patch_size, trainer.label_manager)
    assert torch.equal(drawn[0], expected)
    assert not torch.equal(drawn[1], expected)


def test_what_is_measured_does_not_change_the_training(start):
    weights = []
    for voxels in (0, 512):
        trainer = start(nnUNetTrainerDVCL, "2d_tiny", validation_voxels=voxels)
        for _ in range(2):
            trainer.train_step(next(trainer.dataloader_train))
            _validate(trainer)
            trainer.on_train_epoch_start()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.network.parameters()]))
        assert trainer.network.training
        assert trainer.companions.training
    assert torch.equal(*weights)


def test_gradients_of_the_terms_are_logged_once_an_epoch(start):
    trainer = start(nnUNetTrainerDVCL, "2d_tiny", num_iterations_per_epoch=3, consistency_start=0.0)
    outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(4)]
    for term in ("cps", "hqcl", "dvcl"):
        values = [output[f"gradient_{term}"] for output in outputs]
        assert [math.isnan(value) for value in values] == [False, True, True, False]
        assert values[0] > 0


def test_a_term_that_has_not_started_has_no_gradient(start):
    trainer = start(nnUNetTrainerDVCL, "2d_tiny", contrastive_start=0.5, consistency_start=0.0)
    output = trainer.train_step(next(trainer.dataloader_train))
    assert output["gradient_hqcl"] == output["gradient_dvcl"] == 0
    assert output["gradient_cps"] > 0


def test_a_weight_shows_in_the_gradient(start):
    measured = []
    for weight in (0.1, 0.2):
        trainer = start(nnUNetTrainerDVCL, "2d_tiny", contrastive_weight=weight)
        measured.append(trainer.train_step(next(trainer.dataloader_train)))
    assert measured[1]["gradient_hqcl"] == pytest.approx(2 * measured[0]["gradient_hqcl"], rel=1e-3)
    assert measured[1]["gradient_cps"] == pytest.approx(measured[0]["gradient_cps"], rel=1e-3)
