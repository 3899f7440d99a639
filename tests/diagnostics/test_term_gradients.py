import pytest
import torch

from nnunet_dvcl.diagnostics import relative_gradients


def make_features():
    return [torch.randn(2, 3, 4, requires_grad=True) for _ in range(2)]


def test_the_norm_is_taken_over_all_networks_and_divided_by_the_references():
    a, b = make_features()
    reference = 2 * a.sum()  # 24 entries, each 2
    terms = {"both": (3 * a).sum() + (4 * b).sum(), "one": b[0, 0, 0], "weak": 0.1 * 2 * a.sum()}
    ratios = relative_gradients(terms, reference, [a, b])
    unit = 2 * 24**0.5
    assert ratios["both"].item() == pytest.approx((24 * 9 + 24 * 16) ** 0.5 / unit)
    assert ratios["one"].item() == pytest.approx(1 / unit)
    assert ratios["weak"].item() == pytest.approx(0.1)


def test_a_backward_pass_can_follow_and_finds_no_gradient():
    a, b = make_features()
    hidden = a.exp()
    reference, term = hidden.sum(), (hidden * b).sum()
    relative_gradients({"term": term}, reference, [hidden, b])
    assert a.grad is None
    assert b.grad is None
    (reference + term).backward()
    torch.testing.assert_close(a.grad, a.exp() * (1 + b))


def test_a_term_that_does_not_depend_on_the_features_has_none():
    a, b = make_features()
    terms = {"constant": torch.zeros(()), "of something else": torch.ones(1, requires_grad=True).sum()}
    assert relative_gradients(terms, a.sum(), [a, b]) == {"constant": 0, "of something else": 0}


def test_the_scale_saves_gradients_that_half_precision_cannot_hold():
    features = [torch.ones(8, dtype=torch.float16, requires_grad=True)]

    def tiny(weight):
        return features[0].float().sum() * weight

    assert not relative_gradients({"term": tiny(1e-9)}, tiny(2e-9), features)["term"].isfinite()
    assert relative_gradients({"term": tiny(1e-9)}, tiny(2e-9), features, scale=2.0**16)["term"] == pytest.approx(
        0.5, rel=0.05
    )
