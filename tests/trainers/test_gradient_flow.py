"""What the gradient of each term reaches, and what it never reaches, as one table."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import nnunet_dvcl.trainers as trainers
from nnunet_dvcl.networks import last_segmentation_layer, unwrap
from nnunet_dvcl.trainers.base import Host, WeightedTwins
from nnunet_dvcl.trainers.base.step import Reach, Step, Term
from nnunet_dvcl.trainers.nnUNetTrainerCPS_HqCL import Voxels
from nnunet_dvcl.voxels.gathering import to_dense

METHODS = [
    name.removeprefix("nnUNetTrainer")
    for name in trainers.__all__
    if issubclass(getattr(trainers, name), trainers.nnUNetTrainerSSL) and name != "nnUNetTrainerSSL"
]
ON_HOSTS = [name for name in METHODS if issubclass(getattr(trainers, f"nnUNetTrainer{name}"), Host)]
STORING = [name for name in ON_HOSTS if name != "CCL"]  # which keeps no row
NOT_OF_ROWS = {"teacher", "teacher_head", "frequencies"}
WITH_CONTRAST = [name for name in METHODS if "hqcl" in getattr(trainers, f"nnUNetTrainer{name}").reaches]


HEAD_AND_PREDICTIONS = {"dual_task"}  # terms between the two; others train a head, or the networks' predictions
OF_CUBES = {"location"}  # enters a network at its encoder, with cubes for images
HALVES = ("cps: A learns from B", "cps: B learns from A")


def _expected(trainer) -> dict[str, Reach]:
    """What the trainer says of its terms, and what all have in common."""
    supervised = {f"supervised_{name}": Reach.of(name, "labeled") for name in trainer.student_names}
    halves = {}
    if isinstance(trainer, trainers.nnUNetTrainerCPS):
        halves = {half: Reach.of(name, "unlabeled") for half, name in zip(HALVES, "AB", strict=True)}
    return supervised | trainer.reaches | halves


class Observed(NamedTuple):
    """A training step up to its backward."""

    step: Step
    voxels: dict[str, Voxels]  # empty without contrast
    terms: dict[str, Tensor]
    weights: dict[str, float]  # of the terms beside the supervised ones
    stored: list[Tensor]  # what the memories gave to the losses, as leaves that ask for a gradient


def _keep(monkeypatch, owner, name: str, results: list, change=lambda result: result) -> None:
    """Lets `owner.name` do what it does and keeps what it returns."""
    original = getattr(owner, name)

    def kept(*args, **kwargs):
        results.append(change(original(*args, **kwargs)))
        return results[-1]

    monkeypatch.setattr(owner, name, kept)


def _observe(trainer, monkeypatch) -> Observed:
    unlabeled = next(trainer.dataloader_unlabeled)
    unlabeled["target"][:, :, :4] = -1
    trainer.dataloader_unlabeled = iter([unlabeled])

    supervised, cps, terms, selected, stored, steps = [], [], [], [], [], []
    _keep(monkeypatch, trainer, "class_weighted_loss" if isinstance(trainer, WeightedTwins) else "loss", supervised)
    if isinstance(trainer, trainers.nnUNetTrainerCPS):
        for name in ("_cross_entropy", "_nnunet_loss"):
            _keep(monkeypatch, trainer, name, cps)
    _keep(monkeypatch, trainer, "ssl_terms", terms)
    if "bank" in trainer.memory:
        _keep(monkeypatch, trainer, "_select", selected)
        _keep(monkeypatch, trainer.memory["bank"], "centers", stored, lambda given: (_leaf(given[0]), given[1]))
    if "queue" in trainer.memory:
        _keep(monkeypatch, trainer.memory["queue"], "slots", stored, _slots_as_leaves)
    for name in trainer.memory.keys() & {f"{kind}_{name}" for kind in ("negatives", "means") for name in "AB"}:
        _keep(monkeypatch, trainer.memory[name], "rows", stored, lambda given: (_leaf(given[0]), given[1]))
    for name in trainer.memory.keys() & {"features_A", "features_B"}:
        _keep(monkeypatch, trainer.memory[name], "centers", stored, lambda given: (_leaf(given[0]), given[1]))
    ssl_terms = trainer.ssl_terms
    monkeypatch.setattr(trainer, "ssl_terms", lambda step: steps.append(step) or ssl_terms(step))
    monkeypatch.setattr(trainer, "update_weights", lambda total: torch.tensor(False))  # no `after_step`
    trainer.train_step(next(trainer.dataloader_train))

    found: dict[str, Term] = terms[0]
    values = {f"supervised_{name}": value for name, value in zip(trainer.student_names, supervised, strict=True)}
    values |= {name: term.value for name, term in found.items()}
    values |= dict(zip(HALVES[: len(cps)], cps, strict=True))
    leaves = [x for given, _ in stored for x in (given.values() if isinstance(given, dict) else [given])]
    weights = {name: term.weight for name, term in found.items()}
    return Observed(steps[0], dict(zip("AB", selected, strict=False)), values, weights, leaves)


def _slots_as_leaves(given: tuple[dict[str, Tensor], Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    parts, filled = given
    return {part: _leaf(rows) for part, rows in parts.items()}, filled


def _leaf(x: Tensor) -> Tensor:
    assert not x.requires_grad, "memories store detached rows"
    return x.clone().requires_grad_()


def _touched(term: Tensor, tensors: list[Tensor]) -> list[bool]:
    return [bool(gradient.any()) for gradient in _gradients(term, tensors)]


def _gradients(term: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(term, tensors, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else to_dense(g) for x, g in zip(tensors, found, strict=True)]


def _reached(trainer, term: Tensor) -> set[str]:
    """Students and companions that get a gradient; what reaches a network by its output reaches its last layer too.

    An encoder that two decoders share is of neither alone: that all their terms reach it is a test of that method.
    """
    parts = {"A": trainer.network, **trainer.companions}
    shared = set()
    if "B" in parts and not hasattr(unwrap(parts["B"]), "encoder"):
        shared = {id(p) for p in unwrap(trainer.network).encoder.parameters()}
    own = {name: [p for p in module.parameters() if id(p) not in shared] for name, module in parts.items()}
    return {name for name, parameters in own.items() if any(_touched(term, parameters))}


def _reaches_predictions(trainer, name: str, term: Tensor) -> bool:
    """Whether the term goes through a student's output, and not only through its features."""
    return any(_touched(term, list(last_segmentation_layer(trainer.students()[name]).parameters())))


def _voxels_reached(observed: Observed, name: str, term: Tensor) -> Tensor:
    """Where the gradient enters network `name`, at its logits or at its last feature map: [B, *S] bool."""
    volumes = [observed.step.logits[name]]
    volumes += [observed.step.kept[view] for view in ("recovered", "local") if view in observed.step.kept]
    if name in observed.step.features:
        volumes.append(observed.step.features[name])
    return torch.stack([gradient.abs().sum(1) > 0 for gradient in _gradients(term, volumes)]).any(0)


def _voxels_named(observed: Observed, name: str, kind: str) -> Tensor:
    """[B, *S] bool, labeled patches first."""
    step, voxels = observed.step, observed.voxels
    no_unlabeled = torch.zeros_like(step.valid)
    if kind == "labeled":
        return torch.cat(((step.target >= 0) | ~step.labeled_valid, no_unlabeled))  # padding is background to nnU-Net
    if kind == "contrasted":
        return (voxels[name].anchors >= 0) | torch.cat((voxels[name].mistaken >= 0, no_unlabeled))
    named = torch.cat((torch.zeros_like(step.target, dtype=torch.bool), no_unlabeled))
    if kind == "present":
        return step.present
    if kind == "any":
        return torch.ones_like(named)
    if kind == "unlabeled":
        of_patches = step.unlabeled
    elif kind == "unreliable":
        of_patches = voxels[name].unreliable
    else:
        of_patches = voxels["A"].unreliable | voxels["B"].unreliable
    named[len(named) - len(of_patches) :] = of_patches
    return named


WITH_REGIONS = ("DVCL_SimCLR", "CL_VCL", "CLD", "DHC", "MagicNet")
FROM_THE_START = {"contrastive_start": 0.0, "confidence": 0.4}


@pytest.mark.parametrize(
    ("name", "configuration", "label_mode", "ignored_as_unlabeled", "ssl"),
    [
        *((name, "2d_tiny", "labels", True, {}) for name in METHODS),
        *((name, "2d_tiny", "labels", True, {"host": "cps"}) for name in ON_HOSTS),
        *((name, "3d_tiny", "labels", True, {}) for name in ("CPS", "DVCL")),
        *(("DVCL", "2d_tiny", mode, on, {}) for mode in ("ignore", "regions + ignore") for on in (True, False)),
        *(
            (name, "2d_tiny", "regions + ignore", True, {})
            for name in ("DVCL_SimCLR", "CL_VCL", "CLD", "DHC", "MagicNet")
        ),
        ("CLD", "2d_tiny", "ignore", False, {}),
        *((name, "2d_tiny", "regions + ignore", on, {}) for name in ON_HOSTS for on in (True, False)),
    ],
)
def test_what_each_term_reaches(start, monkeypatch, name, configuration, label_mode, ignored_as_unlabeled, ssl):
    ssl = FROM_THE_START | ssl
    trainer_class = getattr(trainers, f"nnUNetTrainer{name}")
    trainer = start(trainer_class, configuration, ignored_as_unlabeled=ignored_as_unlabeled, **ssl)
    observed = _observe(trainer, monkeypatch)
    ignored = (observed.step.target < 0) & observed.step.labeled_valid
    assert ignored.any() == ("ignore" in label_mode)
    expected = _expected(trainer)
    assert {term: _reached(trainer, value) for term, value in observed.terms.items()} == {
        term: set(reach.modules) for term, reach in expected.items()
    }
    for term, reach in expected.items():
        of_features = any(module.startswith("head_") for module in reach.modules) and term not in HEAD_AND_PREDICTIONS
        for network in reach.modules & set(trainer.student_names):
            assert _reaches_predictions(trainer, network, observed.terms[term]) != of_features, term
    if "dvcl" in observed.terms:
        assert observed.weights["dvcl"] == pytest.approx(2 * 0.1 * 0.3), "whatever loss takes its place"
    for term, (modules, kind) in expected.items():
        for network in trainer.student_names:
            touched = _voxels_reached(observed, network, observed.terms[term])
            named = _voxels_named(observed, network, kind)
            assert not (touched & ~named).any(), f"{term} reaches voxels of {network} that are not {kind}"
            assert not (touched[observed.step.num_labeled :] & ~observed.step.valid).any(), f"{term} reaches padding"
            assert touched.any() == (network in modules and term not in OF_CUBES), term
            if not ignored_as_unlabeled:
                assert not touched[: observed.step.num_labeled][ignored].any(), f"{term} reaches the ignore label"


@pytest.mark.parametrize(
    ("name", "ssl"),
    [*((name, {}) for name in (*WITH_CONTRAST, *STORING)), *((name, {"host": "cps"}) for name in STORING)],
)
def test_no_term_reaches_what_is_stored(start, monkeypatch, name, ssl):
    """Not even where the stored rows ask for a gradient."""
    trainer = start(getattr(trainers, f"nnUNetTrainer{name}"), "2d_tiny", **FROM_THE_START | ssl)
    observed = _observe(trainer, monkeypatch)
    assert len(observed.stored) >= len([memory for memory in trainer.memory if memory not in NOT_OF_ROWS])
    assert not any(parameter.requires_grad for parameter in trainer.memory.parameters())
    for term in observed.terms.values():
        assert not any(_touched(term, observed.stored))
    assert not any(buffer.requires_grad for buffer in trainer.memory.buffers())
