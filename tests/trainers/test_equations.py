"""Equations 1-19 of the DVCL paper, one test each: the equation as loops, in float64, against the package.

Where a trainer realizes the equation, the test asks the trainer. docs/reference/equations.md lists these tests.
"""

import math
from collections import deque

import pytest
import torch
from naive_distance_aware import (
    cosines,
    dot,
    farthest,
    literal_likelihoods,
    literal_psi,
    make_rows,
    naive_dvcl,
    naive_neighborhoods,
    nearest,
    same_prediction,
)
from naive_high_quality import make_rows as make_classes
from naive_high_quality import naive_hqcl
from naive_pseudo_labels import naive_cps, naive_entropy, naive_split, random_logits
from noise import noise_step
from torch import Tensor

from nnunet_dvcl.losses import (
    DistanceAwareContrastiveLoss,
    HighQualityContrastiveLoss,
    find_neighborhoods,
    pseudo_label_cross_entropy,
    voxel_entropy,
)
from nnunet_dvcl.trainers import nnUNetTrainerCPS_HqCL, nnUNetTrainerCPS_SameView, nnUNetTrainerDVCL_SameView
from nnunet_dvcl.trainers import nnUNetTrainerDVCL_noNPS_noQDS as nnUNetTrainerLikelihood
from nnunet_dvcl.voxels.entropy_split import split_by_entropy

EVERY_VOXEL = 4 * 2 * 16 * 16  # of both networks, in the four patches of 2d_tiny


def _kept(monkeypatch, owner, name: str) -> list[tuple]:
    """The arguments of every later call of `owner.name`, which does what it did."""
    calls, original = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args: calls.append(args) or original(*args))
    return calls


def _softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def _rows(volume: Tensor) -> list[list[float]]:
    """[B, C, *S] -> one list of C numbers a voxel, batch first."""
    return volume.detach().double().movedim(1, -1).flatten(0, -2).tolist()


def _argmax(row: list[float]) -> int:
    return max(range(len(row)), key=row.__getitem__)


def _entropy_split(step, name: str) -> tuple[list[bool], list[bool], float]:
    """Eq. 4-6 for one network of a trainer's step: M_r, M_u, and τ."""
    entropy = [naive_entropy(_softmax(row)) for row in _rows(step.logits[name][step.num_labeled :])]
    return naive_split(entropy, step.valid.flatten().tolist(), 0.5)


def _assert_same_rows(given: Tensor, expected: Tensor) -> None:
    """The same rows in any order."""
    assert given.shape == expected.shape
    distance = (given[:, None].detach() - expected[None].detach()).abs().amax(-1)
    assert distance.amin(0).max() < 1e-5
    assert distance.amin(1).max() < 1e-5


# --------------------------------------------------------------------------- both networks


def test_equation_01_supervised_loss(build_trainer, monkeypatch):
    """nnU-Net's loss is Dice + CE, and its Dice loss is the paper's minus 1: twice the paper's L_sup, minus 2."""
    trainer = build_trainer(nnUNetTrainerCPS_SameView)
    trainer.enable_deep_supervision = False
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    steps = _kept(monkeypatch, trainer, "ssl_terms")
    output = trainer.train_step(next(trainer.dataloader_train))

    (step,) = steps[0]
    supervised = 0.0
    for i in range(step.num_labeled):
        y = step.target_levels[i].flatten().long().tolist()  # nnU-Net calls padding background
        for logits in step.logits.values():
            p = [_softmax(row) for row in _rows(logits[i : i + 1])]
            cross_entropy = sum(-math.log(row[c]) for row, c in zip(p, y, strict=True)) / len(y)
            dice = []
            for c in (1, 2):  # nnU-Net's leaves the background out
                overlap = sum(row[c] for row, label in zip(p, y, strict=True) if label == c)
                dice.append((2 * overlap + 1e-5) / (sum(row[c] for row in p) + y.count(c) + 1e-5))
            supervised += 0.5 * (1 - sum(dice) / 2 + cross_entropy) / step.num_labeled
    assert output["supervised_A"] + output["supervised_B"] == pytest.approx(2 * supervised - 2, abs=1e-4)


@pytest.mark.parametrize("space", [(4, 3), (2, 3, 4)])
def test_equation_02_cross_pseudo_supervision(space):
    a, b, valid = random_logits(space)
    halves = (pseudo_label_cross_entropy(*pair, valid) for pair in ((a, b.argmax(1)), (b, a.argmax(1))))
    assert sum(halves).item() == pytest.approx(naive_cps(a, b, valid), rel=1e-12)


def test_equation_02_on_the_unlabeled_patches_of_a_step(start):
    trainer = start(nnUNetTrainerCPS_SameView, "2d_tiny")
    step = noise_step(trainer)
    a, b = (logits.double()[2:] for logits in step.logits.values())
    assert trainer.ssl_terms(step)["cps"].value.item() == pytest.approx(naive_cps(a, b, step.valid), rel=1e-5)


def test_equation_03_total(start):
    """λ_u = λ_c = 0.1, β = 0.3; twice the paper's total, as the supervised loss is twice the paper's."""
    trainer = start(nnUNetTrainerDVCL_SameView)
    output = trainer.train_step(next(trainer.dataloader_train))
    supervised = (output["supervised_A"] + output["supervised_B"]) / 2
    rampup = math.exp(-5 * (1 - 0) ** 2)
    total = supervised + 0.1 * rampup * output["cps"] + 0.1 * (output["hqcl"] + 0.3 * output["dvcl"])
    assert output["total"] == pytest.approx(2 * total, rel=1e-5)


# --------------------------------------------------------------------------- entropy split


@pytest.mark.parametrize("space", [(5,), (4, 3), (2, 3, 4)])
def test_equation_04_entropy(space):
    p = torch.randn(2, 6, *space, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(3).softmax(1)
    expected = torch.tensor([naive_entropy(row) for row in _rows(p)], dtype=torch.float64).view(2, *space)
    torch.testing.assert_close(voxel_entropy(p), expected, rtol=1e-12, atol=1e-12)


def test_equation_05_reliable_and_unreliable_masks(start):
    """Each network has its own; padding is in neither."""
    trainer = start(nnUNetTrainerDVCL_SameView, "2d_tiny")
    step = noise_step(trainer)
    masks = []
    for name in "AB":
        voxels = trainer._select(step, name)
        reliable, unreliable, _ = _entropy_split(step, name)
        masks.append(unreliable)
        assert voxels.unreliable.flatten().tolist() == unreliable
        assert (voxels.anchors[step.num_labeled :] >= 0).flatten().tolist() == reliable
        assert any(reliable)
        assert any(unreliable)
    assert masks[0] != masks[1]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_equation_06_threshold(start, alpha):
    """The mean plus α standard deviations of a network's entropy."""
    entropy = torch.rand(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    valid = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(1)) < 0.7
    *_, threshold = split_by_entropy(entropy, alpha, valid)
    assert float(threshold) == pytest.approx(naive_split(entropy.flatten().tolist(), valid.flatten(), alpha)[2])

    trainer = start(nnUNetTrainerDVCL_SameView, "2d_tiny")
    step = noise_step(trainer)
    for name in "AB":
        trainer._select(step, name)
        assert step.statistics[f"threshold_{name}"] == pytest.approx(_entropy_split(step, name)[2], rel=1e-5)
    assert step.statistics["threshold_A"] != step.statistics["threshold_B"]


# --------------------------------------------------------------------------- contrast of reliable voxels


def _contrasted(start, monkeypatch, **ssl):
    """A trainer that draws every voxel, one step of it, its voxels, and what its HqCL was given."""
    trainer = start(nnUNetTrainerCPS_HqCL, "2d_tiny", num_anchors=EVERY_VOXEL, bank_capacity=EVERY_VOXEL, **ssl)
    step = noise_step(trainer)
    selected, given = _kept(monkeypatch, trainer, "_high_quality_contrast"), _kept(monkeypatch, trainer, "hqcl")
    trainer.ssl_terms(step)
    names = ("anchors", "anchor_mask", "centers", "center_mask", "negatives", "negative_mask")
    *rows, _generator = given[0]
    return trainer, step, selected[0][0], dict(zip(names, rows, strict=True))


def _features_of(trainer, voxels, chosen: dict[str, list[int]]) -> Tensor:
    """The features of the chosen voxels of A, then of B."""
    return torch.cat([trainer.project(n, voxels[n].features, torch.tensor(i).long()) for n, i in chosen.items()])


def test_equation_07_anchors(start, monkeypatch):
    """R_c: labeled voxels with y = c = argmax p, and reliable ones with ŷ = c, of A and of B."""
    trainer, step, voxels, given = _contrasted(start, monkeypatch)
    for c in range(3):
        chosen = {"A": [], "B": []}
        for name, indices in chosen.items():
            predicted = [_argmax(row) for row in _rows(step.logits[name])]
            reliable, *_ = _entropy_split(step, name)
            y = step.target.flatten().tolist()
            for j, label in enumerate(predicted):
                of_class = y[j] == c if j < len(y) else reliable[j - len(y)]
                if label == c and of_class:
                    indices.append(j)
        assert all(chosen.values())
        _assert_same_rows(given["anchors"][c][given["anchor_mask"][c]], _features_of(trainer, voxels, chosen))


@pytest.mark.parametrize("capacity", [EVERY_VOXEL, 40])
def test_equation_08_center(start, monkeypatch, capacity):
    """P_c: the mean of the latest anchors of c, those of this step among them."""
    trainer = start(nnUNetTrainerCPS_HqCL, "2d_tiny", num_anchors=30, bank_capacity=capacity)
    given = _kept(monkeypatch, trainer, "hqcl")
    stored = [deque(maxlen=capacity) for _ in range(3)]
    for _ in range(3):
        trainer.ssl_terms(noise_step(trainer))
        anchors, anchor_mask, centers, center_mask, *_ = given[-1]
        for c in range(3):
            stored[c].extend(anchors[c][anchor_mask[c]].double().tolist())
            center = [sum(column) / len(stored[c]) for column in zip(*stored[c], strict=True)]
            assert center_mask[c]
            assert centers[c].tolist() == pytest.approx(center, rel=1e-4, abs=1e-6)
    assert len(stored[0]) == min(capacity, 90)


def test_equation_09_negatives(start, monkeypatch):
    """G_c: labeled voxels with argmax p = c and y != c, of A and of B."""
    trainer, step, voxels, given = _contrasted(start, monkeypatch)
    y = step.target.flatten().tolist()
    for c in range(3):
        chosen = {"A": [], "B": []}
        for name, indices in chosen.items():
            predicted = [_argmax(row) for row in _rows(step.logits[name])]
            indices += [j for j in range(len(y)) if predicted[j] == c and y[j] != c]
        assert all(chosen.values())
        _assert_same_rows(given["negatives"][c][given["negative_mask"][c]], _features_of(trainer, voxels, chosen))


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_equation_10_info_nce_of_anchors(temperature):
    """And the mean over all C classes; with at most N negatives every anchor has all of them."""
    rows = make_classes(pool=50)
    expected = naive_hqcl(**rows, temperature=temperature)
    loss = HighQualityContrastiveLoss(num_negatives=50, temperature=temperature)(**rows)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)


def test_equation_10_has_the_papers_numbers(start):
    trainer = start(nnUNetTrainerDVCL_SameView)
    defaults = trainer.config_class()
    assert (defaults.num_anchors, defaults.num_negatives, defaults.temperature) == (256, 50, 1.0)


# --------------------------------------------------------------------------- contrast of unreliable voxels


def test_equation_11_same_prediction(start, monkeypatch):
    """U_R are the unreliable voxels of A and B; with one neighbor and one outsider the loss is -log O_mn + log O_mk."""
    every = {"num_queries": EVERY_VOXEL, "queue_capacity": 2 * EVERY_VOXEL}
    trainer = start(nnUNetTrainerLikelihood, "2d_tiny", num_neighbors=1, num_outsiders=1, **every)
    step = noise_step(trainer)
    step.valid[:, :12] = False
    scored = _kept(monkeypatch, trainer, "score")
    loss = trainer.ssl_terms(step)["dvcl"].value
    queries = scored[0][2]
    p = queries.compact().candidates["probabilities"].double()

    expected = []
    for name in "AB":
        _, unreliable, _ = _entropy_split(step, name)
        rows = _rows(step.logits[name][step.num_labeled :])
        expected += [_softmax(row) for row, use in zip(rows, unreliable, strict=True) if use]
    _assert_same_rows(p, torch.tensor(expected, dtype=torch.float64))

    found = trainer.dvcl.neighborhoods(queries.candidates["features"], queries.rows, queries.filled)
    triples = torch.stack((queries.rows, found.neighbors[:, 0], found.outsiders[:, 0]), 1)[queries.rows >= 0]
    ratios = []
    for m, n, k in triples.tolist():
        same = same_prediction(p[m], p)
        assert sum(same) == pytest.approx(1)
        ratios.append(math.log(same[k] / same[n]))
    assert loss.item() == pytest.approx(sum(ratios) / len(ratios), rel=1e-4)


@pytest.mark.parametrize(("k", "k_out"), [(5, 5), (3, 7)])
def test_equation_12_neighbors_and_outsiders(k, k_out):
    _, queries, features, _ = make_rows()
    found, sim = find_neighborhoods(features, queries, k, k_out, 20), cosines(features)
    for i, m in enumerate(queries.tolist()):
        assert found.neighbors[i].tolist() == nearest(sim, m, k)
        assert found.outsiders[i].tolist() == farthest(sim, m, k_out)


def test_equation_12_candidates_are_a_queue(start, monkeypatch):
    """First in, first out, over the steps; the queries of a step are among them."""
    trainer = start(nnUNetTrainerDVCL_SameView, "2d_tiny", num_queries=16, queue_capacity=80)
    scored, stored = _kept(monkeypatch, trainer, "score"), deque(maxlen=80)
    for _ in range(4):
        trainer.ssl_terms(noise_step(trainer))
        queries = scored[-1][2].compact()
        pairs = torch.cat((queries.features, queries.probabilities), 1).detach()
        assert len(pairs) == 32
        stored.extend(pairs)
        candidates = torch.cat((queries.candidates["features"], queries.candidates["probabilities"]), 1)
        _assert_same_rows(candidates, torch.stack(list(stored)))
        torch.testing.assert_close(candidates[queries.rows], pairs)


def test_equation_13_relevant_neighbors():
    _, queries, features, _ = make_rows()
    found, sim = find_neighborhoods(features, queries, 5, 5, 20), cosines(features)
    for i, m in enumerate(queries.tolist()):
        assert found.relevant[i].tolist() == [m in nearest(sim, n, 5) for n in found.neighbors[i].tolist()]
    assert found.relevant.any()
    assert not found.relevant.all()


@pytest.mark.parametrize("r", [0.5, 0.2])
def test_equation_14_affinity(r):
    """Of candidates with predictions of their own, the gradient of one query reads off A_mn."""
    _, queries, features, _ = make_rows()
    each = torch.eye(len(features), dtype=torch.float64)
    loss = DistanceAwareContrastiveLoss(5, 5, 20, ordinary_affinity=r, detect_outliers=False)
    sim = cosines(features)
    for m in queries.tolist():
        p = each[m : m + 1].clone().requires_grad_()
        loss(p, torch.tensor([m]), features, each).backward()
        for n in range(len(features)):
            affinity = 0.0
            if n in nearest(sim, m, 5):
                affinity = 1.0 if m in nearest(sim, n, 5) else r
            outsider = n in farthest(sim, m, 5)
            assert p.grad[0, n].item() == pytest.approx(outsider - affinity, abs=1e-12)


@pytest.mark.parametrize("u", [2, 5, 20])
def test_equation_15_outliers(u):
    """E(m) = {n | n in C_m^K and m in C_n^U}; m is an outlier when it is empty."""
    _, queries, features, _ = make_rows(n=60, num_queries=40)
    found, sim = find_neighborhoods(features, queries, 3, 5, u), cosines(features)
    for i, m in enumerate(queries.tolist()):
        considers = {n for n in range(60) if n in nearest(sim, m, 3) and m in nearest(sim, n, u)}
        assert found.outlier[i] == (len(considers) < 1)
    if u == 2:
        assert found.outlier.any()
        assert not found.outlier.all()


@pytest.mark.parametrize(("k", "k_out"), [(5, 5), (6, 3)])
def test_equation_16_likelihoods(k, k_out):
    """The two sums of the loss are their logarithms, without the denominator."""
    query_p, queries, features, candidate_p = make_rows()
    loss = DistanceAwareContrastiveLoss(k, k_out, 20, 0.5, detect_outliers=False)
    for i, (c, relevant, d, _) in enumerate(naive_neighborhoods(features, queries.tolist(), k, k_out, 20)):
        p, found = query_p[i : i + 1], loss.neighborhoods(features, queries[i : i + 1])
        log_denominator = math.log(sum(math.exp(dot(p[0], q)) for q in candidate_p))
        close, distant = literal_likelihoods(p[0], c, relevant, d, candidate_p, 0.5)
        no_outsider = found._replace(outsiders=found.outsiders[:, :0])
        no_neighbor = found._replace(neighbors=found.neighbors[:, :0], relevant=found.relevant[:, :0])
        attraction = -loss.score(p, candidate_p, no_outsider).item()
        separation = loss.score(p, candidate_p, no_neighbor).item()
        assert attraction - k * log_denominator == pytest.approx(math.log(close), rel=1e-10)
        assert separation - k_out * log_denominator == pytest.approx(math.log(distant), rel=1e-10)


@pytest.mark.parametrize("k", [1, 5])
def test_equation_17_likelihood_ratio(k):
    """For K = K' the denominators cancel: the loss of one query is ψ itself."""
    query_p, queries, features, candidate_p = make_rows()
    loss = DistanceAwareContrastiveLoss(k, k, 20, 0.5, detect_outliers=False)
    for i, (c, relevant, d, _) in enumerate(naive_neighborhoods(features, queries.tolist(), k, k, 20)):
        psi = loss(query_p[i : i + 1], queries[i : i + 1], features, candidate_p)
        assert psi.item() == pytest.approx(literal_psi(query_p[i], c, relevant, d, candidate_p, 0.5), abs=1e-10)


def _psi_bar(p: Tensor, c, relevant, d, candidate_p: Tensor) -> Tensor:
    """The last line of Eq. 18, with its constant."""
    neighbors = sum((1 if a else 0.5) * dot(p, candidate_p[n]) for n, a in zip(c, relevant, strict=True))
    outsiders = sum(dot(p, candidate_p[k]) for k in d)
    return -neighbors + outsiders + (len(c) - len(d)) * (math.log(len(candidate_p)) + 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("k", "k_out"), [(5, 5), (6, 3), (8, 1)])
def test_equation_18_upper_bound(k, k_out, seed):
    """ψ equals ψ̄ for K = K' and stays below it for K > K'. The loss is ψ̄ without its constant: the same gradient.

    The line between, the first ≤, is not tested: log Σ e^x >= log|U_R| + mean(x) is Jensen's inequality, so for K > K'
    that line is below ψ and not above. The last line holds all the same: p·q <= 1, so Σ e^(p·q) <= |U_R| e.
    """
    query_p, queries, features, candidate_p = make_rows(seed=seed)
    loss = DistanceAwareContrastiveLoss(k, k_out, 20, 0.5, detect_outliers=False)
    for i, (c, relevant, d, _) in enumerate(naive_neighborhoods(features, queries.tolist(), k, k_out, 20)):
        ours, papers = (query_p[i : i + 1].clone().requires_grad_() for _ in range(2))
        psi = literal_psi(query_p[i], c, relevant, d, candidate_p, 0.5)
        bound = _psi_bar(papers[0], c, relevant, d, candidate_p)
        value = loss(ours, queries[i : i + 1], features, candidate_p)
        constant = (k - k_out) * (math.log(len(features)) + 1)
        assert value.item() + constant == pytest.approx(bound.item(), abs=1e-10)
        if k == k_out:
            assert psi == pytest.approx(bound.item(), abs=1e-10)
        else:
            assert psi < bound.item()
        value.backward()
        bound.backward()
        torch.testing.assert_close(ours.grad, papers.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("u", [3, 50])
def test_equation_19_mean_over_the_queries(u):
    """Over the queries that are no outliers."""
    rows = make_rows(n=60, num_queries=40)
    loss = DistanceAwareContrastiveLoss(5, 5, u)(*rows)
    torch.testing.assert_close(loss, naive_dvcl(*rows, 5, 5, u), rtol=1e-12, atol=1e-12)
    outliers = [outlier for *_, outlier in naive_neighborhoods(rows[2], rows[1].tolist(), 5, 5, u)]
    assert any(outliers) == (u == 3)
