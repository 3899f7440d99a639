import math

import pytest
import torch
from noise import noise_step

import nnunet_dvcl.trainers as trainers
from nnunet_dvcl.losses import DistanceAwareContrastiveLoss
from nnunet_dvcl.trainers import nnUNetTrainerDVCL
from nnunet_dvcl.trainers.base.nnUNetTrainerSSL import Step
from nnunet_dvcl.trainers.nnUNetTrainerCPS_HqCL import Voxels
from nnunet_dvcl.voxels.gathering import to_dense


@pytest.mark.parametrize("configuration", ["2d_tiny", "3d_tiny"])
@pytest.mark.parametrize("name", ["A", "B"])
def test_sample_then_project_is_project_then_sample(start, configuration, name):
    """To the precision of float32, the gradients too; the head has no normalization over space."""
    trainer = start(nnUNetTrainerDVCL, configuration)
    head = trainer.companions[f"head_{name}"]
    volume = torch.randn(2, 4, *trainer.configuration_manager.patch_size, requires_grad=True)
    index = torch.randint(0, 2 * volume[0, 0].numel(), (50,))
    sampled_first = trainer.project(name, volume, index)
    projected_first = head(volume.movedim(1, -1)).flatten(0, -2)[index]
    assert sampled_first.shape == (50, 8)
    torch.testing.assert_close(sampled_first, projected_first, rtol=1e-6, atol=1e-6)
    weight = torch.randn(50, 8)
    gradients = [
        [to_dense(g) for g in torch.autograd.grad((rows * weight).sum(), [volume, *head.parameters()])]
        for rows in (sampled_first, projected_first)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_each_network_is_projected_by_its_own_head(start):
    trainer = start(nnUNetTrainerDVCL)
    classes = {name: torch.full((1, 8, 8, 8), c) for c, name in enumerate("AB")}
    voxels = {name: Voxels(torch.randn(1, 4, 8, 8, 8), c, c, c > 0) for name, c in classes.items()}
    rows, mask = trainer._draw(voxels, classes)
    assert mask[:2].all()
    assert not mask[2].any()
    for c, name in enumerate("AB"):
        every = trainer.project(name, voxels[name].features, torch.arange(512))
        distance = (rows[c][:, None] - every).abs().amax(-1)  # [M, voxels]
        assert distance.amin(1).max() < 1e-5


def test_queries_enter_the_queue_before_the_search(start, monkeypatch):
    trainer = start(nnUNetTrainerDVCL)
    seen = {}
    original = DistanceAwareContrastiveLoss.neighborhoods

    def spy(self, features, queries, filled):
        seen.update(filled=filled, queries=queries)
        return original(self, features, queries, filled)

    monkeypatch.setattr(DistanceAwareContrastiveLoss, "neighborhoods", spy)
    for _ in range(3):
        trainer.ssl_terms(noise_step(trainer))
        assert len(seen["queries"]) == 2 * 32
        assert (seen["queries"] >= 0).all()
        assert seen["filled"][seen["queries"]].all()
    assert seen["filled"].sum() == 128 == len(trainer.memory["queue"])


def test_rows_that_are_left_take_no_part(start):
    """Fewer unreliable voxels than queries, fewer candidates than slots: as if there were only those."""
    trainer = start(trainers.nnUNetTrainerDVCL_SameView, num_neighbors=1, outlier_neighbors=1)
    step = noise_step(trainer)
    step.valid[:] = False
    step.valid[0, 0, 0, :12] = True
    scored, score = [], trainer.score
    trainer.score = lambda *args: scored.append(args[2]) or score(*args)
    term = trainer.ssl_terms(step)["dvcl"].value
    (queries,) = scored
    drawn = queries.rows >= 0
    few = queries.compact()
    assert 0 < len(few.rows) == drawn.sum() == len(trainer.memory["queue"]) < 24
    assert len(queries.rows) == 64
    assert len(queries.filled) == 128
    expected = trainer.dvcl(few.probabilities, few.rows, few.candidates["features"], few.candidates["probabilities"])
    torch.testing.assert_close(term, expected)
    found = trainer.dvcl.neighborhoods(few.candidates["features"], few.rows)
    assert found.outlier.any()
    torch.testing.assert_close(step.statistics["relevant_neighbors"], found.relevant.float().mean())
    torch.testing.assert_close(step.statistics["outlier_queries"], found.outlier.float().mean())
    (gradient,) = torch.autograd.grad(term, queries.logits)
    assert not gradient[~drawn].any()
    assert gradient[drawn].any()


def test_contrast_can_start_later(start, capsys):
    trainer = start(nnUNetTrainerDVCL, contrastive_start=0.5)
    early = trainer.ssl_terms(noise_step(trainer, progress=0.49))
    assert early["hqcl"].value == early["dvcl"].value == 0
    assert len(trainer.memory["queue"]) == 0
    late = trainer.ssl_terms(noise_step(trainer, progress=0.5))
    assert late["hqcl"].value > 0
    outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(2)]
    trainer.on_train_epoch_end(outputs)
    assert "ssl/hqcl was 0 for the whole epoch: ssl.contrastive_start = 0.5" in capsys.readouterr().out


def test_the_weight_of_the_contrast_can_rise(start):
    """By w(t), counted from where the contrast starts."""
    trainer = start(nnUNetTrainerDVCL, contrastive_start=0.2, contrastive_rampup_fraction=0.4)
    for progress, ramp in ((0.2, math.exp(-5)), (0.4, math.exp(-5 * 0.5**2)), (0.6, 1.0), (0.9, 1.0)):
        terms = trainer.ssl_terms(noise_step(trainer, progress))
        assert terms["hqcl"].weight == pytest.approx(2 * 0.1 * ramp)
        assert terms["dvcl"].weight == pytest.approx(2 * 0.1 * 0.3 * ramp)
    constant = start(nnUNetTrainerDVCL)
    assert constant.ssl_terms(noise_step(constant, 0.0))["hqcl"].weight == 2 * 0.1


def test_no_mistake_and_no_unreliable_voxel_is_finite(start):
    trainer = start(trainers.nnUNetTrainerDVCL_SameView)
    image, logits = torch.randn(4, 1, 16, 16, 16), {}
    for name, network in trainer.students().items():
        sure = torch.zeros(4, 3, 16, 16, 16)
        sure[:, 0] = 5.0
        logits[name] = network(image)[0] * 0 + sure
    target, valid = torch.zeros(2, 16, 16, 16, dtype=torch.long), torch.ones(2, 16, 16, 16, dtype=torch.bool)
    step = Step(image, target, valid, 0.5, trainer.labels, outputs=logits)
    trainer.after_forward(step)
    terms = trainer.ssl_terms(step)
    total = sum(term.weight * term.value for term in terms.values())
    total.backward()
    assert terms["hqcl"].value == 0
    assert terms["dvcl"].value == 0
    assert total.isfinite()
    assert all(p.grad.isfinite().all() for p in trainer.network.parameters() if p.grad is not None)


def test_everything_the_issue_names_is_logged(start):
    trainer = start(nnUNetTrainerDVCL)
    outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(2)]
    trainer.on_train_epoch_end(outputs)
    keys = {k.removeprefix("ssl/") for k in trainer.logger.get_checkpoint() if k.startswith("ssl/")}
    assert keys == {
        *("supervised_A", "supervised_B", "cps", "hqcl", "dvcl", "total", "rampup", "agreement"),
        *("unreliable_A", "unreliable_B", "threshold_A", "threshold_B", "bank_fill", "queue_fill"),
        *("relevant_neighbors", "outlier_queries", "skipped_steps"),
        *("gradient_cps", "gradient_hqcl", "gradient_dvcl"),
    }


@pytest.mark.parametrize(
    ("name", "partition_neighbors", "detect_outliers"),
    [("", True, True), ("_noQDS", True, False), ("_noNPS", False, True), ("_noNPS_noQDS", False, False)],
)
def test_table_2_by_name(start, name, partition_neighbors, detect_outliers):
    trainer = start(getattr(trainers, f"nnUNetTrainerDVCL{name}"))
    assert trainer.dvcl.partition_neighbors == partition_neighbors
    assert trainer.dvcl.detect_outliers == detect_outliers


def test_row_2_is_dvcl_without_the_distance_aware_term(start):
    trainer = start(trainers.nnUNetTrainerCPS_HqCL, distance_weight=0.5)
    output = trainer.train_step(next(trainer.dataloader_train))
    assert set(trainer.loss_terms) == {"supervised_A", "supervised_B", "cps", "hqcl"}
    expected = output["supervised_A"] + output["supervised_B"]
    expected += 2 * (0.1 * output["rampup"] * output["cps"] + 0.1 * output["hqcl"])
    assert output["total"] == pytest.approx(expected, rel=1e-5)
