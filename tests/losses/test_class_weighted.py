"""Class weights of CLD and DHC, and cross entropy and Dice with them, against loops."""

import pytest
import torch
from naive_class_weights import naive_cross_entropy, naive_dice_loss, naive_logarithmic, naive_power

from nnunet_dvcl.losses import logarithmic_weights, power_weights, weighted_cross_entropy, weighted_dice_loss
from nnunet_dvcl.losses.class_weighted import counts_by_class, of_class, overlaps, sums_by_class

COUNTS = torch.tensor([[900.0, 40.0], [90.0, 60.0], [0.0, 0.0], [10.0, 900.0]])  # K = 4, R = 2


@pytest.mark.parametrize("power", [0.0, 1 / 3, 1.0])
def test_power_weights_equal_the_loop(power):
    given = power_weights(COUNTS / COUNTS.sum(0), power)
    for r in range(2):
        assert given[:, r].tolist() == pytest.approx(naive_power(COUNTS[:, r].tolist(), power), rel=1e-5)


@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
def test_logarithmic_weights_equal_the_loop(floor):
    given = logarithmic_weights(COUNTS / COUNTS.sum(0), floor)
    for r in range(2):
        assert given[:, r].tolist() == pytest.approx(naive_logarithmic(COUNTS[:, r].tolist(), floor), rel=1e-5)


@pytest.mark.parametrize("weights", [lambda n: power_weights(n, 1 / 3), lambda n: logarithmic_weights(n, 0.1)])
def test_the_rarest_class_weighs_most(weights):
    given = weights(torch.tensor([[0.9], [0.08], [0.02]]))[:, 0].tolist()
    assert given[0] < given[1] < given[2]
    for nothing in (torch.zeros(3, 2), torch.full((3, 2), 0.2)):
        given = weights(nothing)
        assert given.isfinite().all()
        assert (given == given[0, 0]).all(), "no class is rarer than another"
        assert given[0, 0] > 0


def decisions(space, classes=4, number=2, seed=0):
    """Logits with a graph [2, K, R, *S], decisions [2, R, *S] with some not known, weights [2, R, *S]."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, number, *space, generator=generator, dtype=torch.float64).requires_grad_()
    decided = torch.randint(-1, classes, (2, number, *space), generator=generator)
    weights = torch.rand(2, number, *space, generator=generator, dtype=torch.float64).masked_fill(decided < 0, 0)
    return logits, decided, weights


@pytest.mark.parametrize("space", [(4, 3), (2, 3, 4)])
def test_cross_entropy_equals_the_loop(space):
    logits, decided, weights = decisions(space)
    value = weighted_cross_entropy(logits, decided, weights)
    rows = logits.detach().movedim(1, -1).flatten(0, -2).tolist()
    expected = naive_cross_entropy(rows, decided.flatten().tolist(), weights.flatten().tolist())
    assert value.item() == pytest.approx(expected, rel=1e-12)
    seven = weighted_cross_entropy(logits, decided, weights, torch.tensor(7.0))
    assert seven.item() == pytest.approx(expected * weights.sum().item() / 7)


def test_the_gradient_reaches_what_has_a_weight_and_nothing_else():
    logits, decided, weights = decisions((4, 4))
    weights[0] = 0
    weighted_cross_entropy(logits, decided, weights).backward()
    assert torch.equal(logits.grad.abs().sum(1) > 0, weights > 0)
    logits, decided, weights = decisions((4, 4))
    nothing = weighted_cross_entropy(logits, decided, torch.zeros_like(weights))
    nothing.backward()
    assert nothing == 0
    assert not logits.grad.any()


def test_twice_the_weight_is_twice_the_gradient():
    """What makes a rare class count: relative to the others."""
    logits, decided, _ = decisions((6, 6))
    per_class = torch.tensor([[1.0, 1.0], [2.0, 1.0], [1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    gradients = []
    for values in (torch.ones_like(per_class), per_class):
        value = weighted_cross_entropy(logits, decided, of_class(values, decided), torch.tensor(1.0))
        gradients.append(torch.autograd.grad(value, logits)[0].movedim(1, -1))
    heavy = torch.zeros_like(decided, dtype=torch.bool)
    heavy[:, 0] = decided[:, 0] == 1
    torch.testing.assert_close(gradients[1][heavy], 2 * gradients[0][heavy])
    torch.testing.assert_close(gradients[1][~heavy], gradients[0][~heavy])


@pytest.mark.parametrize("space", [(4, 3), (2, 3, 4)])
def test_dice_equals_the_loop(space):
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(2, 3, *space, generator=generator, dtype=torch.float64).requires_grad_()
    truth = torch.rand(2, 3, *space, generator=generator) < 0.4
    truth[0, 2] = False
    known = torch.rand(2, 1, *space, generator=generator) < 0.7
    weights = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
    patches = []
    for b in range(2):
        where = known[b, 0].flatten().tolist()
        rows, inside = (x[b].detach().flatten(1).T.tolist() for x in (p, truth))
        rows, inside = ([row for row, is_known in zip(x, where, strict=True) if is_known] for x in (rows, inside))
        patches.append((rows, inside))
    sums = overlaps(p, truth, known)
    alone = [naive_dice_loss(*patch, weights.tolist()) for patch in patches]
    assert weighted_dice_loss(sums, weights).item() == pytest.approx(sum(alone) / 2, rel=1e-12)
    together = naive_dice_loss(patches[0][0] + patches[1][0], patches[0][1] + patches[1][1], weights.tolist())
    value = weighted_dice_loss(sums.sum(1), weights)
    assert value.item() == pytest.approx(together, rel=1e-12)
    (gradient,) = torch.autograd.grad(value, p)
    assert torch.equal(gradient != 0, known.expand_as(p))
    torch.testing.assert_close(
        weighted_dice_loss(overlaps(p, truth), weights),
        weighted_dice_loss(overlaps(p, truth, torch.ones_like(known)), weights),
    )


def test_sums_and_counts_of_classes():
    logits, decided, _ = decisions((3, 4))
    values = logits.detach()
    for k in range(4):
        for r in range(2):
            where = decided[:, r] == k
            assert counts_by_class(decided, 4)[k, r] == where.sum()
            assert sums_by_class(values, decided)[k, r] == pytest.approx(values[:, k, r][where].sum().item())
    per_class = torch.arange(8.0).view(4, 2)
    given = of_class(per_class, decided)
    for r in range(2):
        assert torch.equal(given[:, r], per_class[decided[:, r].clamp(min=0), r] * (decided[:, r] >= 0))
