"""Two ranks with a batch between them compute what one rank computes of it: values, gradients, weights, memories."""

import math

import pytest
import torch
from jobs import METHODS, ON_CPS, OTHERS, TWICE, WITHOUT_DEEP_SUPERVISION
from torch import Tensor

from nnunet_dvcl import trainers

PADDED = tuple(f"{name}, rank 1 has padding alone" for name in ("DVCL", "DVCL_SimCLR", "CL_VCL"))
OF_HOSTS = tuple(f"{name} on CPS" for name in ON_CPS)
IGNORE = ("ignore", "rank 1 has no voxel")
JOBS = (
    *METHODS,
    *OTHERS,
    *OF_HOSTS,
    "weak and strong",
    "AllParts",
    *PADDED,
    "Supervised",
    "two steps",
    "compiled",
    "sequential",
    "regions",
    *IGNORE,
)
AFTER_A_STEP = (*OTHERS, *OF_HOSTS, "AllParts", "two steps", "compiled", "rank 1 has no voxel")
every_job = pytest.mark.parametrize("job", JOBS)
# Which candidates are the K nearest and farthest is a matter of rounding where two are almost equally far: these
# shares, and the loss of predictions of such candidates, can differ a little. Nothing else depends on it.
SHARES = {"relevant_neighbors", "outlier_queries"}
OF_NEIGHBORS = {"dvcl", "total", "gradient_dvcl"}
CHOOSE_NEIGHBORS = {job for job in JOBS if job.split(",")[0] in ("DVCL", "DVCL_LogLikelihood_SNCLRWeights")} | {
    *("two steps", "compiled", "regions", *IGNORE),
}


# nnU-Net's loss of a rank is a mean over the annotated voxels of that rank, whatever the others have
NNUNETS_OWN = {"loss", "supervised_A", "supervised_B", "total", "gradient_cps", "gradient_hqcl", "gradient_dvcl"}


def _distance(given: Tensor, expected: Tensor) -> float:
    return float((given - expected).norm() / expected.norm().clamp(min=1e-5))


def _sorted_rows(rows: Tensor) -> Tensor:
    """In an order that rounding does not change: by the first column, which has no ties."""
    return rows[rows[:, 0].argsort()]


@every_job
def test_the_mean_over_the_ranks_is_the_value_of_one(results, job):
    ranks, one = [rank[job]["outputs"] for rank in results.two], results.one[job]["outputs"]
    for step, expected in enumerate(one):
        for name, value in expected.items():
            if job in IGNORE and (name in NNUNETS_OWN or step > 0):
                continue
            rounded = name in SHARES or (name in OF_NEIGHBORS and job in CHOOSE_NEIGHBORS)
            relative, absolute = (0.05, 0.02) if rounded else (5e-5, 1e-6)
            of_ranks = [float(outputs[step][name]) for outputs in ranks]
            assert sum(of_ranks) / 2 == pytest.approx(float(value), rel=relative, abs=absolute, nan_ok=True), (
                name,
                step,
            )


@pytest.mark.parametrize("job", [job for job in JOBS if job not in IGNORE])
def test_every_gradient_is_that_of_one(results, job):
    expected = results.one[job]["gradients"]
    for rank in results.two:
        given = rank[job]["gradients"]
        assert given.keys() == expected.keys()
        for name, gradient in expected.items():
            if given[name] is None or gradient is None:  # a head without a loss; nnU-Net gives DDP a weight of 1e-6
                assert not any(g is not None and g.abs().max() > 1e-4 for g in (given[name], gradient)), name
            elif gradient.abs().max() > 1e-5:
                assert _distance(given[name], gradient) < (0.1 if job in CHOOSE_NEIGHBORS else 2e-4), name


@every_job
def test_ranks_stay_equal_to_the_last_bit(results, job):
    first, second = (rank[job] for rank in results.two)
    for part in ("weights", "memory", "optimizer"):
        assert first[part].keys() == second[part].keys()
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), name


@every_job
def test_thresholds_and_contrast_are_the_same_on_each_rank(results, job):
    first, second = (rank[job]["outputs"][0] for rank in results.two)
    for name in ("threshold_A", "threshold_B", "hqcl", "dvcl"):
        if name in first:
            assert first[name] == second[name], name
    if "cps" in first:
        assert first["cps"] != second["cps"], "each has its own part of the batch"


@pytest.mark.parametrize("job", [job for job in JOBS if job not in ("CPS", "Supervised", *AFTER_A_STEP)])
def test_memories_hold_the_rows_of_all_ranks(results, job):
    """In some order: draws are random even where they take everything."""
    given, expected = results.two[0][job]["memory"], results.one[job]["memory"]
    assert torch.equal(given["bank.count"], expected["bank.count"])
    assert (expected["bank.count"] > 0).any()
    for rows, other, count in zip(
        given["bank.features"], expected["bank.features"], expected["bank.count"], strict=True
    ):
        torch.testing.assert_close(_sorted_rows(rows[:count]), _sorted_rows(other[:count]), rtol=1e-3, atol=1e-3)
    if "queue.count" in expected:
        count = expected["queue.count"]
        assert given["queue.count"] == count > 0
        for part in ("features", "probabilities"):
            rows, other = (memory[f"queue.{part}_rows"][:count] for memory in (given, expected))
            torch.testing.assert_close(_sorted_rows(rows), _sorted_rows(other), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("job", PADDED)
def test_a_rank_without_an_unreliable_voxel_trains_with_the_other(results, job):
    for first, second in zip(*(rank[job]["outputs"] for rank in results.two), strict=True):
        assert first["unreliable_A"] > 0
        assert second["unreliable_A"] == second["unreliable_B"] == second["cps"] == 0
        assert first["dvcl"] == second["dvcl"] != 0


def test_a_rank_without_any_voxel_trains_with_the_other(results):
    """Its heads have no row to project, and still take part in the gradient of the other rank's."""
    first, second = (rank["rank 1 has no voxel"] for rank in results.two)
    for output in second["outputs"]:
        assert output["cps"] == output["unreliable_A"] == 0
        assert output["hqcl"] > 0
    for name, gradient in second["gradients"].items():
        if name.startswith("head"):
            assert torch.equal(gradient, first["gradients"][name])
            assert gradient.any()


def test_every_term_takes_part(results):
    for job in JOBS:
        for output in results.one[job]["outputs"]:
            terms = ("cps", "hqcl", "dvcl", "pseudo_labels", "contrast")
            assert all(output[term] != 0 and math.isfinite(output[term]) for term in terms if term in output), job


@pytest.mark.parametrize(
    ("job", "parts"),
    [
        ("AllParts", {"adversary", "teacher"}),
        *((name, {"teacher"}) for name in ("MT", "UAMT")),
        *((name, {"adversary"}) for name in ("DAN", "SASSNet")),
        ("CCL", {"teacher"}),
        ("CLD", {"class_shares", "confidence_A", "confidence_B"}),
        ("DHC", {"class_shares", "difficulty"}),
    ],
)
def test_what_other_methods_remember_is_that_of_one_rank(results, job, parts):
    """An adversary sees two labeled and three unlabeled patches, which the ranks have in unequal parts."""
    expected = results.one[job]["memory"]
    for rank in results.two:
        for name, value in rank[job]["memory"].items():
            # nnU-Net gives the lowest level a weight of 1e-6 for the sake of DDP
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-6)
    assert {name.partition(".")[0] for name in expected} == parts


def test_the_terms_of_other_methods_take_part(results):
    """A teacher without noise is its student in the first two steps."""
    for name in OTHERS:
        output = results.one[name]["outputs"][-1]
        terms = getattr(trainers, f"nnUNetTrainer{name}").reaches
        assert all(output[term] > 0 for term in terms), name


@pytest.mark.parametrize("name", TWICE)
def test_a_second_step_follows_the_first(results, name):
    """DistributedDataParallel fails in it where a parameter got no gradient in the first."""
    first, second = (rank[f"{name}, twice"] for rank in results.two)
    assert len(first["outputs"]) == 2
    for part in ("weights", "memory", "optimizer"):
        for key, value in first[part].items():
            assert torch.equal(value, second[part][key]), key
    frozen = [key for key, gradient in first["gradients"].items() if gradient is None]
    assert all(".seg_layers." in key for key in frozen)
    assert bool(frozen) == (name in WITHOUT_DEEP_SUPERVISION)


def test_all_ranks_draw_the_same_negatives(results):
    """And others in the next step: the value is then the same on each, and the gradient that of one draw."""
    first, second = (rank["few negatives"]["outputs"] for rank in results.two)
    assert [output["hqcl"] for output in first] == [output["hqcl"] for output in second]
    assert first[0]["hqcl"] != 0
