"""Regions, an ignore label, and both: what a step is made of, and what ignored voxels are to each method."""

import math
from functools import partial

import pytest
import torch
from naive_pseudo_labels import naive_cps, naive_cps_of_regions, naive_entropy, naive_split
from noise import noise_step

from nnunet_dvcl.losses import complementary_center_contrast
from nnunet_dvcl.networks import run_with_features
from nnunet_dvcl.trainers import nnUNetTrainerCL_VCL, nnUNetTrainerCPS, nnUNetTrainerCPS_SameView, nnUNetTrainerDVCL
from nnunet_dvcl.voxels.gathering import gather_rows

MODES = ["labels", "ignore", "regions", "regions + ignore"]
IGNORED = 3


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _step_of(trainer, batch):
    steps, ssl_terms = [], trainer.ssl_terms
    trainer.ssl_terms = lambda step: steps.append(step) or ssl_terms(step)
    trainer.train_step(batch)
    return steps[0]


@pytest.mark.parametrize("ignored_as_unlabeled", [True, False])
@pytest.mark.parametrize("label_mode", MODES)
def test_a_step_has_nnunets_labels(start, label_mode, ignored_as_unlabeled):
    trainer = start(nnUNetTrainerCPS, "2d_tiny", ignored_as_unlabeled=ignored_as_unlabeled)
    batch = next(trainer.dataloader_train)
    target, valid = batch["target"][0].clone(), batch["target"][-1][:, 0]
    step = _step_of(trainer, batch)
    manager = trainer.label_manager
    if "regions" in label_mode:
        assert target.shape[1] == 2 + ("ignore" in label_mode)
        ignored = target[:, -1].bool() if "ignore" in label_mode else torch.zeros_like(target[:, 0], dtype=torch.bool)
        painted = [manager.convert_probabilities_to_segmentation(channels[:2].float()) for channels in target]
        expected = torch.stack(painted).long()
    else:
        ignored = target[:, 0] == IGNORED
        expected = target[:, 0].long()
    assert ignored.any() == ("ignore" in label_mode)
    assert torch.equal(step.target, expected.masked_fill(ignored | ~valid, -1))
    assert {0, 1} <= set(step.target.unique().tolist()) <= {-1, 0, 1, 2}

    for name, logits in step.logits.items():
        predicted = torch.stack([manager.convert_logits_to_segmentation(patch.detach()) for patch in logits])
        assert torch.equal(step.predicted(name), predicted.long())
    if "ignore" in label_mode and ignored_as_unlabeled:
        assert torch.equal(step.unlabeled, torch.cat((ignored & valid, step.valid)))
        assert step.unlabeled_patches(step.image) is step.image
    else:
        assert torch.equal(step.unlabeled, step.valid)
        assert torch.equal(step.unlabeled_patches(step.image), step.image[2:])


def _half_ignored(trainer):
    return noise_step(trainer, ignored_rows=8)


def _entropy(row: list[float], label_mode: str) -> float:
    if "regions" in label_mode:
        return sum(naive_entropy([_sigmoid(x), 1 - _sigmoid(x)]) for x in row) / len(row)
    total = sum(math.exp(x) for x in row)
    return naive_entropy([math.exp(x) / total for x in row])


def _class(row: list[float], label_mode: str) -> int:
    if "regions" in label_mode:
        return 2 if row[1] > 0 else int(row[0] > 0)
    return max(range(len(row)), key=row.__getitem__)


@pytest.mark.parametrize("ignored_as_unlabeled", [True, False])
@pytest.mark.parametrize("label_mode", ["ignore", "regions + ignore"])
def test_the_roles_of_ignored_voxels(start, label_mode, ignored_as_unlabeled):
    """Eq. 4-7 and 9 as loops: never labeled anchors nor negatives; by their entropy what unlabeled voxels are."""
    trainer = start(nnUNetTrainerDVCL, "2d_tiny", ignored_as_unlabeled=ignored_as_unlabeled)
    step = _half_ignored(trainer)
    for name in "AB":
        voxels = trainer._select(step, name)
        rows = step.logits[name].detach().double().movedim(1, -1).flatten(0, -2).tolist()
        y = step.target.flatten().tolist()
        unlabeled = [ignored_as_unlabeled and label == -1 for label in y] + step.valid.flatten().tolist()
        reliable, unreliable, threshold = naive_split([_entropy(row, label_mode) for row in rows], unlabeled, 0.5)
        predicted = [_class(row, label_mode) for row in rows]
        anchors = [c if reliable[j] or (j < len(y) and y[j] == c) else -1 for j, c in enumerate(predicted)]
        assert voxels.anchors.flatten().tolist() == anchors
        assert voxels.mistaken.flatten().tolist() == [
            c if label not in (-1, c) else -1 for c, label in zip(predicted, y, strict=False)
        ]
        of_patches = voxels.unreliable.flatten().tolist()
        assert of_patches == unreliable[-len(of_patches) :]
        assert sum(of_patches) == sum(unreliable) > 0
        assert step.statistics[f"threshold_{name}"] == pytest.approx(threshold, rel=1e-5)
        assert step.statistics[f"unreliable_{name}"] == pytest.approx(sum(unreliable) / sum(unlabeled))
        assert any(reliable[: len(y)]) == any(unreliable[: len(y)]) == ignored_as_unlabeled


@pytest.mark.parametrize("ignored_as_unlabeled", [True, False])
@pytest.mark.parametrize(
    ("label_mode", "loss"),
    [("ignore", naive_cps), ("regions + ignore", naive_cps_of_regions)],
)
def test_pseudo_labels_of_ignored_voxels(start, label_mode, loss, ignored_as_unlabeled):
    """Eq. 2 and the share of agreement, over the unlabeled voxels and the ignored ones."""
    trainer = start(nnUNetTrainerCPS_SameView, "2d_tiny", ignored_as_unlabeled=ignored_as_unlabeled)
    step = _half_ignored(trainer)
    unlabeled = torch.cat((step.target == -1, step.valid))
    unlabeled[:2] &= ignored_as_unlabeled
    a, b = (logits.detach() for logits in step.logits.values())
    value = trainer.ssl_terms(step)["cps"].value
    assert value.item() == pytest.approx(float(loss(a.double(), b.double(), unlabeled)), rel=1e-5)
    agree = step.predicted("A") == step.predicted("B")
    assert step.statistics["agreement"] == pytest.approx(agree[unlabeled].float().mean().item())


@pytest.mark.parametrize("ignored_as_unlabeled", [True, False])
@pytest.mark.parametrize("label_mode", ["ignore", "regions + ignore"])
def test_ignored_voxels_ask_and_answer(start, label_mode, ignored_as_unlabeled):
    """They are among DVCL's queries, in both networks, and so in its queue."""
    trainer = start(
        *(nnUNetTrainerDVCL, "2d_tiny"),
        num_queries=2000,
        queue_capacity=4000,
        ignored_as_unlabeled=ignored_as_unlabeled,
    )
    step = _half_ignored(trainer)
    queries, draw = [], trainer.draw_queries
    trainer.draw_queries = lambda *args: queries.append(draw(*args)) or queries[0]
    trainer.ssl_terms(step)
    (found,) = queries
    labeled_voxels = step.target.numel()
    expected = []
    is_local = dict(zip(found.index, found.is_local.chunk(2), strict=True))
    found = found.compact()
    for name, index in found.index.items():
        index = index[is_local[name]]
        assert (index < labeled_voxels).any() == ignored_as_unlabeled
        assert (step.target.flatten()[index[index < labeled_voxels]] == -1).all()
        expected.append(trainer.labels.probabilities(gather_rows(step.logits[name], index)))
    torch.testing.assert_close(found.probabilities, torch.cat(expected))
    torch.testing.assert_close(found.candidates["probabilities"], torch.cat(expected).detach())


@pytest.mark.parametrize("label_mode", ["regions"])
def test_dvcl_contrasts_the_agreement_over_regions(start, label_mode):
    trainer = start(nnUNetTrainerDVCL, "2d_tiny")
    scored, score = [], trainer.score
    trainer.score = lambda *args: scored.append(args[2]) or score(*args)
    term = trainer.ssl_terms(noise_step(trainer))["dvcl"].value
    queries = scored[0].compact()
    s, r = queries.logits.sigmoid(), queries.logits.shape[1]
    torch.testing.assert_close(queries.probabilities, torch.cat((s, 1 - s), 1) / math.sqrt(r))
    found = trainer.dvcl.neighborhoods(queries.candidates["features"], queries.rows)
    other = queries.candidates["probabilities"] * math.sqrt(r)

    def agreement(n):
        t = other[n, :r]
        return (s[:, None] * t + (1 - s[:, None]) * (1 - t)).mean(-1)

    affinity = 0.5 + 0.5 * found.relevant
    psi = agreement(found.outsiders).sum(1) - (affinity * agreement(found.neighbors)).sum(1)
    torch.testing.assert_close(term, psi[~found.outlier].mean())
    assert trainer.memory["bank"].num_classes == 3


@pytest.mark.parametrize("label_mode", ["regions"])
def test_complementary_labels_are_those_that_are_least_likely_painted(start, label_mode):
    trainer = start(nnUNetTrainerCL_VCL, "2d_tiny")
    scored, score = [], trainer.score
    trainer.score = lambda *args: scored.append(args[2]) or score(*args)
    term = trainer.ssl_terms(noise_step(trainer))["dvcl"].value
    whole, small = scored[0].logits.detach().sigmoid().unbind(1)
    painted = torch.stack(((1 - whole) * (1 - small), whole * (1 - small), small), 1)
    centers = trainer.memory["bank"].centers()
    assert centers[1].all()
    torch.testing.assert_close(term, complementary_center_contrast(scored[0].features, painted, *centers))


@pytest.mark.parametrize("label_mode", MODES)
def test_curves_are_measured_on_voxels_whose_label_is_known(start, label_mode):
    trainer = start(nnUNetTrainerDVCL, "2d_tiny", validation_voxels=10**6, num_queries=10**4, queue_capacity=10**5)
    labels = trainer.validation_voxels.labels
    assert set(labels.tolist()) == {0, 1, 2}
    patches = 16 * 16 * 16
    assert (len(labels) < 0.9 * patches) == ("ignore" in label_mode)

    wrong = []
    for network in trainer.students().values():
        logits, _ = trainer.validation_voxels.look(partial(run_with_features, network), trainer.device)
        rows = logits.double().tolist()
        _, unreliable, _ = naive_split([_entropy(row, label_mode) for row in rows], [True] * len(rows), 0.5)
        wrong += [
            _class(row, label_mode) != label
            for row, label, unsure in zip(rows, labels.tolist(), unreliable, strict=True)
            if unsure
        ]
    with torch.no_grad():
        statistics = trainer.epoch_statistics()
    assert statistics["val_unreliable_wrong"] == pytest.approx(sum(wrong) / len(wrong), abs=1e-3)


@pytest.mark.parametrize("label_mode", ["regions + ignore"])
def test_withheld_cases_show_nothing_of_their_labels(start, tiny_dataset, label_mode):
    """Neither regions nor the ignore label: an unlabeled patch has a mask of the image alone."""
    tiny_dataset.write_splits({"train": ["case_0", "case_1"], "val": ["case_5"], "unlabeled": ["case_2", "case_3"]})
    for scan in tiny_dataset.images.iterdir():
        scan.unlink()
    tiny_dataset.images.rmdir()
    for folder in tiny_dataset.preprocessed.glob("*_unlabeled"):
        for file in folder.rglob("*.pkl"):
            file.unlink()
    trainer = start(nnUNetTrainerCPS, "2d_tiny", fold=0)
    for _ in range(4):
        unlabeled = next(trainer.dataloader_unlabeled)
        assert set(unlabeled["keys"]) <= {"case_2", "case_3"}
        assert unlabeled["target"].shape[1] == 1
        assert set(unlabeled["target"].unique().tolist()) <= {-1, 0}
