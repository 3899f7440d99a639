"""Table 3 and the complementary labels: each variant scores the queries of DVCL by another loss."""

import pytest
import torch
from noise import noise_step

import nnunet_dvcl.trainers as trainers
from nnunet_dvcl.losses import complementary_center_contrast, info_nce, nn_clr, sim_clr, sn_clr
from nnunet_dvcl.voxels.gathering import gather_rows

VARIANTS = [
    *("DVCL_InfoNCE", "DVCL_SimCLR", "DVCL_NNCLR", "DVCL_SNCLR", "CL_VCL"),
    *("DVCL_LogLikelihood", "DVCL_LogLikelihood_NPS", "DVCL_LogLikelihood_SNCLRWeights"),
]


@pytest.fixture
def begin(start):
    """``begin(name, **ssl)``: a trainer, and a step on noise."""

    def begin_trainer(name, **ssl):
        trainer = start(getattr(trainers, f"nnUNetTrainer{name}"), "2d_tiny", **ssl)
        return trainer, noise_step(trainer)

    return begin_trainer


def _scored(trainer, step):
    """The voxels and queries that `score` was given, and the term."""
    seen, score = {}, trainer.score

    def spy(step, voxels, queries):
        seen.update(voxels=voxels, queries=queries)
        return score(step, voxels, queries)

    trainer.score = spy
    term = trainer.ssl_terms(step)["dvcl"]
    return seen["voxels"], seen["queries"], term


def test_the_other_view_is_the_same_voxel_in_the_other_network(begin):
    trainer, step = begin("DVCL_SimCLR")
    voxels, queries, term = _scored(trainer, step)
    expected = [
        trainer.companions[f"head_{other}"](gather_rows(voxels[other].features, queries.index[name]))
        for name, other in ("AB", "BA")
    ]
    torch.testing.assert_close(trainer.other_views(voxels, queries), torch.cat(expected))
    torch.testing.assert_close(term.value, sim_clr(queries.features, torch.cat(expected)))


@pytest.mark.parametrize("name", ["DVCL_InfoNCE", "DVCL_NNCLR", "DVCL_SNCLR"])
def test_neighbors_and_outsiders_are_those_of_dvcl(begin, name):
    trainer, step = begin(name, temperature=0.5)
    voxels, queries, term = _scored(trainer, step)
    views, queries = trainer.other_views(voxels, queries), queries.compact()
    candidates = queries.candidates["features"]
    similarity = torch.nn.functional.cosine_similarity(queries.features[:, None], candidates[None], dim=-1).detach()
    near = similarity.clone().scatter_(1, queries.rows[:, None], -9).topk(5).indices
    far = similarity.clone().scatter_(1, queries.rows[:, None], 9).topk(5, largest=False).indices
    expected = {
        "DVCL_InfoNCE": lambda: info_nce(queries.features, candidates[near], candidates[far], 0.5),
        "DVCL_NNCLR": lambda: nn_clr(candidates[near[:, 0]], views, 0.5),
        "DVCL_SNCLR": lambda: sn_clr(queries.features, views, candidates[near], 0.5),
    }[name]()
    torch.testing.assert_close(term.value, expected, rtol=1e-4, atol=1e-4)  # near ties among the candidates
    assert {"relevant_neighbors", "outlier_queries"} <= step.statistics.keys()


def test_likelihood_rows_are_those_of_table_2():
    assert issubclass(trainers.nnUNetTrainerDVCL_LogLikelihood, trainers.nnUNetTrainerDVCL_noNPS_noQDS)
    assert issubclass(trainers.nnUNetTrainerDVCL_LogLikelihood_NPS, trainers.nnUNetTrainerDVCL_noQDS)


def test_soft_weights_keep_the_strength_of_the_attraction(begin):
    """Row 6 differs from row 4 by how the attraction is divided: little, and not nothing."""
    values = []
    for name in ("DVCL_LogLikelihood", "DVCL_LogLikelihood_SNCLRWeights"):
        trainer, step = begin(name)
        torch.manual_seed(1)
        values.append(trainer.ssl_terms(step)["dvcl"].value.item())
    assert values[0] != values[1]
    assert values[0] == pytest.approx(values[1], abs=0.1)


def test_complementary_labels_use_the_centers_of_hqcl(begin):
    trainer, step = begin("CL_VCL")
    _, queries, term = _scored(trainer, step)
    centers = trainer.memory["bank"].centers()
    assert centers[1].any()
    torch.testing.assert_close(
        term.value, complementary_center_contrast(queries.features, queries.probabilities, *centers)
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_no_unreliable_voxel_is_a_zero_with_a_graph(begin, name):
    trainer, step = begin(name)
    step.valid[:] = False
    term = trainer.ssl_terms(step)["dvcl"]
    term.value.backward()
    assert term.value == 0


def test_the_reason_for_zero_fits_the_loss(begin):
    trainer, _ = begin("CL_VCL")
    assert "center" in trainer.why_zero("dvcl")
    trainer, _ = begin("CL_VCL", contrastive_start=0.5)
    assert "contrastive_start" in trainer.why_zero("dvcl")
