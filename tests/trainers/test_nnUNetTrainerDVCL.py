import math

import pytest
import torch

import nnunet_dvcl.trainers as trainers
from nnunet_dvcl.losses import DistanceAwareContrastiveLoss
from nnunet_dvcl.sampling import gather_rows
from nnunet_dvcl.trainers import nnUNetTrainerDVCL
from nnunet_dvcl.trainers.nnUNetTrainerCPS_HqCL import Voxels
from nnunet_dvcl.trainers.nnUNetTrainerSSL import Step


def _step(trainer, progress: float = 0.5) -> Step:
    """A forward of both networks on noise, two labeled and two unlabeled patches."""
    torch.manual_seed(0)
    image = torch.randn(4, 1, 16, 16, 16)
    logits = {name: network(image)[0] for name, network in trainer.students().items()}
    valid = torch.ones(2, 16, 16, 16, dtype=torch.bool)
    valid[:, :4] = False
    return Step(image, logits, torch.randint(0, 3, (2, 16, 16, 16)), valid, progress)


def _reached(module) -> bool:
    return any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_the_total_has_the_papers_ratios(start):
    """Eq. 3, the factor 2 as for CPS."""
    trainer = start(nnUNetTrainerDVCL)
    output = trainer.train_step(next(trainer.dataloader_train))
    expected = (
        output["supervised_A"]
        + output["supervised_B"]
        + 2 * (0.1 * output["rampup"] * output["cps"] + 0.1 * (output["hqcl"] + 0.3 * output["dvcl"]))
    )
    assert output["total"] == pytest.approx(expected, rel=1e-5)


def test_what_each_term_reaches(start):
    trainer = start(nnUNetTrainerDVCL)
    modules = {"A": trainer.network, **trainer.companions}
    reached = {}
    for term in ("cps", "hqcl", "dvcl"):
        trainer.optimizer.zero_grad()
        trainer.ssl_terms(_step(trainer))[term].value.backward()
        reached[term] = {name for name, module in modules.items() if _reached(module)}
    assert reached["cps"] == {"A", "B"}
    assert reached["hqcl"] == {"A", "B", "head_A", "head_B"}
    assert reached["dvcl"] == {"A", "B"}, "features only choose the neighbors"
    assert not any(buffer.requires_grad for buffer in trainer.memory.buffers())


def test_hqcl_does_not_reach_the_last_segmentation_layer_and_dvcl_does(start):
    trainer = start(nnUNetTrainerDVCL)
    for term, expected in (("hqcl", False), ("dvcl", True)):
        trainer.optimizer.zero_grad()
        trainer.ssl_terms(_step(trainer))[term].value.backward()
        for network in trainer.students().values():
            assert _reached(network.decoder.seg_layers[-1]) == expected


def test_dvcl_reaches_valid_unreliable_unlabeled_voxels_only(start):
    trainer = start(nnUNetTrainerDVCL)
    step = _step(trainer)
    for logits in step.logits.values():
        logits.retain_grad()
    voxels = {}
    original = trainer.contrastive_terms
    trainer.contrastive_terms = lambda step, selected: voxels.update(selected) or original(step, selected)
    trainer.ssl_terms(step)["dvcl"].value.backward()
    for name, logits in step.logits.items():
        touched = logits.grad.abs().sum(1) > 0
        assert not touched[:2].any()
        assert touched[2:].any()
        assert not (touched[2:] & ~voxels[name].unreliable).any()
        assert not (touched[2:] & ~step.valid).any()


def test_anchors_and_mistakes_are_those_of_the_paper(start):
    """Eq. 7: y = c = argmax p, or reliable with argmax p = c. Eq. 9: argmax p = c and y != c."""
    trainer = start(nnUNetTrainerDVCL)
    step = _step(trainer)
    for name, logits in step.logits.items():
        voxels = trainer._select(step, name)
        predicted = logits.argmax(1)
        p = logits.softmax(1)
        entropy = -(p * p.log()).sum(1)[2:]
        threshold = entropy[step.valid].mean() + 0.5 * entropy[step.valid].std(correction=0)
        correct = predicted[:2] == step.target
        assert torch.equal(voxels.anchors[:2], torch.where(correct, step.target, -1))
        assert torch.equal(voxels.mistaken, torch.where(correct, -1, predicted[:2]))
        reliable = (entropy <= threshold) & step.valid
        agree = (voxels.anchors[2:] == torch.where(reliable, predicted[2:], -1)).float().mean()
        assert agree > 0.999  # float ties at the threshold
        assert step.statistics[f"threshold_{name}"] == pytest.approx(threshold.item(), rel=1e-5)


def test_sample_then_project_is_project_then_sample(start):
    trainer = start(nnUNetTrainerDVCL)
    volume = torch.randn(2, 4, 16, 16, 16)
    index = torch.randint(0, 2 * 16**3, (50,))
    dense = trainer.companions["head_A"](volume.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(trainer.project("A", volume, index), gather_rows(dense, index))


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

    def spy(self, features, queries):
        seen.update(features=features.clone(), queries=queries)
        return original(self, features, queries)

    monkeypatch.setattr(DistanceAwareContrastiveLoss, "neighborhoods", spy)
    for _ in range(3):
        trainer.ssl_terms(_step(trainer))
        assert len(seen["queries"]) == 2 * 32
        assert (seen["queries"] >= 0).all()
    assert len(seen["features"]) == 128 == len(trainer.memory["queue"])


def test_contrast_can_start_later(start, capsys):
    trainer = start(nnUNetTrainerDVCL, contrastive_start=0.5)
    early = trainer.ssl_terms(_step(trainer, progress=0.49))
    assert early["hqcl"].value == early["dvcl"].value == 0
    assert len(trainer.memory["queue"]) == 0
    late = trainer.ssl_terms(_step(trainer, progress=0.5))
    assert late["hqcl"].value > 0
    outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(2)]
    trainer.on_train_epoch_end(outputs)
    assert "ssl/hqcl was 0 for the whole epoch: ssl.contrastive_start = 0.5" in capsys.readouterr().out


def test_the_weight_of_the_contrast_can_rise(start):
    """By w(t), counted from where the contrast starts."""
    trainer = start(nnUNetTrainerDVCL, contrastive_start=0.2, contrastive_rampup_fraction=0.4)
    for progress, ramp in ((0.2, math.exp(-5)), (0.4, math.exp(-5 * 0.5**2)), (0.6, 1.0), (0.9, 1.0)):
        terms = trainer.ssl_terms(_step(trainer, progress))
        assert terms["hqcl"].weight == pytest.approx(2 * 0.1 * ramp)
        assert terms["dvcl"].weight == pytest.approx(2 * 0.1 * 0.3 * ramp)
    constant = start(nnUNetTrainerDVCL)
    assert constant.ssl_terms(_step(constant, 0.0))["hqcl"].weight == 2 * 0.1


def test_no_mistake_and_no_unreliable_voxel_is_finite(start):
    trainer = start(nnUNetTrainerDVCL)
    image, logits = torch.randn(4, 1, 16, 16, 16), {}
    for name, network in trainer.students().items():
        sure = torch.zeros(4, 3, 16, 16, 16)
        sure[:, 0] = 5.0
        logits[name] = network(image)[0] * 0 + sure
    target, valid = torch.zeros(2, 16, 16, 16, dtype=torch.long), torch.ones(2, 16, 16, 16, dtype=torch.bool)
    step = Step(image, logits, target, valid, 0.5)
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
        *("relevant_neighbors", "outlier_queries"),
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
