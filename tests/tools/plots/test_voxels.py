import numpy as np
import pytest
import torch
from torch import nn

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.labels import SigmoidRegions, SoftmaxLabels
from nnunet_dvcl.losses import voxel_entropy
from nnunet_dvcl.networks import FeatureHead
from nnunet_dvcl.tools.plots.cases import Case
from nnunet_dvcl.tools.plots.voxels import FeatureNetwork, draw_evenly, draw_features

CPU = torch.device("cpu")
LABELS = SoftmaxLabels(3)


class Pointwise(nn.Module):
    """Each voxel's logits and features depend on that voxel alone, so that they can be checked one by one."""

    def __init__(self, dim: int):
        super().__init__()
        convolution = nn.Conv2d if dim == 2 else nn.Conv3d
        torch.manual_seed(0)
        self.features = convolution(2, 4, 1)
        self.decoder = nn.Module()
        self.decoder.seg_layers = nn.ModuleList([nn.Identity(), convolution(4, 3, 1)])
        self.training_modes = set()

    def forward(self, image):
        self.training_modes.add(self.training)
        return self.decoder.seg_layers[-1](self.features(image) * 3)


def make_case(shape, seed) -> Case:
    rng = np.random.default_rng(seed)
    return Case(rng.normal(size=(2, *shape)).astype(np.float32), rng.integers(-1, 3, (1, *shape)).astype(np.int8))


@torch.no_grad()
def every_voxel(network, cases):
    """(case, features, truth, predicted, entropy) of each valid voxel, by one forward of whole cases."""
    rows = []
    for name, case in cases.items():
        image = torch.from_numpy(case.data)[None]
        volume = network.features.weight.flatten(1) @ image.flatten(2)[0] + network.features.bias[:, None]
        logits = network.decoder.seg_layers[-1]
        probabilities = (logits.weight.flatten(1) @ (volume * 3) + logits.bias[:, None]).softmax(0)
        entropy = voxel_entropy(probabilities[None])[0]
        columns = (volume.T * 3, torch.from_numpy(case.truth).flatten(), probabilities.argmax(0), entropy)
        rows += [(name, *voxel) for voxel in zip(*columns, strict=True) if voxel[1] >= 0]
    return rows


@pytest.mark.parametrize(("dim", "patch_size"), [(2, (8, 8)), (3, (8, 8, 8))])
@pytest.mark.parametrize("with_head", [False, True])
def test_drawn_voxels_have_their_own_values(dim, patch_size, with_head):
    network = Pointwise(dim).train()
    head = FeatureHead(4, 6) if with_head else None
    cases = {"a": make_case((6, 11, 8), 1), "b": make_case((10, 9, 5), 2)}
    voxels, shown = draw_features(FeatureNetwork(network, head, CPU), cases, patch_size, 4, LABELS, 100, 0.5, "title")

    assert network.training_modes == {False}
    expected = every_voxel(network, cases)
    entropy = torch.stack([row[4] for row in expected])
    threshold = entropy.double().mean() + 0.5 * entropy.double().std(correction=0)
    by_entropy = {float(row[4]): row for row in expected}
    assert len(by_entropy) == len(expected), "an entropy names a voxel"
    for i in range(len(voxels)):
        near = min(by_entropy, key=lambda e: abs(e - voxels.entropy[i]))
        case, features, truth, predicted, exact = by_entropy[near]
        assert voxels.entropy[i] == pytest.approx(near, abs=1e-5)
        assert (voxels.case[i], voxels.truth[i], voxels.predicted[i]) == (case, truth, predicted)
        assert voxels.reliable[i] == (exact <= threshold)
        features = head(features) if with_head else features
        np.testing.assert_allclose(shown[i], features.detach(), rtol=1e-4, atol=1e-5)


def test_an_ignored_voxel_is_left_out():
    case = make_case((10, 12, 14), 1)
    arguments = ({"a": case}, (8, 8, 8), 1, SoftmaxLabels(2, ignore_label=2), 10_000, 0.5, "title")
    voxels, _ = draw_features(FeatureNetwork(Pointwise(3), None, CPU), *arguments)
    assert set(voxels.truth.tolist()) == {0, 1}


def test_regions_have_the_classes_that_they_paint():
    """Truth and predictions are painted, entropies are those of the sigmoids."""
    network, labels = Pointwise(3), SigmoidRegions([[1, 2], 2, [1]], [1, 2, 1])
    cases = {"a": make_case((10, 12, 14), 1)}
    voxels, features = draw_features(FeatureNetwork(network, None, CPU), cases, (8, 8, 8), 1, labels, 200, 0.5, "title")
    with torch.no_grad():
        logits = network.decoder.seg_layers[-1](torch.from_numpy(features).view(-1, 4, 1, 1, 1))
    np.testing.assert_array_equal(voxels.predicted, labels.predicted(logits).flatten())
    np.testing.assert_allclose(voxels.entropy, labels.entropy(logits).flatten(), rtol=1e-4, atol=1e-6)
    assert set(voxels.truth.tolist()) == {0, 1, 2}


def test_half_is_unreliable_and_classes_are_even():
    network = FeatureNetwork(Pointwise(3), None, CPU)
    cases = {"a": make_case((10, 12, 14), 1)}
    voxels, features = draw_features(network, cases, (8, 8, 8), 1, LABELS, 61, 0.5, "title")
    assert len(set(voxels.entropy.tolist())) == len(voxels), "no voxel twice"
    for reliable in (True, False):
        assert np.bincount(voxels.truth[voxels.reliable == reliable]).tolist() == [10, 10, 10]
    _, again = draw_features(network, cases, (8, 8, 8), 1, LABELS, 61, 0.5, "title")
    assert np.array_equal(features, again)


def test_alpha_moves_the_split():
    network = FeatureNetwork(Pointwise(3), None, CPU)
    cases = {"a": make_case((10, 12, 14), 1)}
    highest = []
    for alpha in (-0.5, 0.5, 1.0):
        voxels, _ = draw_features(network, cases, (8, 8, 8), 1, LABELS, 1000, alpha, "title")
        highest.append(voxels.entropy[voxels.reliable].max())
    assert highest[0] < highest[1] < highest[2]


def test_a_scarce_class_leaves_its_place_to_the_others():
    classes = torch.tensor([0] * 100 + [1] * 3 + [2] * 50 + [-1] * 200)
    drawn = draw_evenly(classes, 4, 23)
    assert torch.bincount(classes[drawn]).tolist() == [10, 3, 10]
    assert len(drawn.unique()) == 23
    assert torch.equal(drawn, draw_evenly(classes, 4, 23)), "always the same"
    assert len(draw_evenly(classes, 4, 1000)) == 153, "all there are"
    assert len(draw_evenly(torch.full((9,), -1), 4, 5)) == 0


def test_only_drawn_voxels_are_looked_at_again():
    network = Pointwise(3)
    forwards = []
    network.register_forward_hook(lambda *_: forwards.append(1))
    truth = np.full((1, 8, 8, 32), -1, np.int8)
    truth[..., 8:16] = 1
    case = Case(make_case((8, 8, 32), 0).data, truth)
    voxels, _ = draw_features(FeatureNetwork(network, None, CPU), {"a": case}, (8, 8, 8), 1, LABELS, 40, 0.5, "title")
    assert len(voxels) == 40
    assert len(forwards) == 4 + 1


def test_too_few_voxels():
    network, cases = FeatureNetwork(Pointwise(3), None, CPU), {"a": make_case((8, 8, 8), 1)}
    with pytest.raises(UserError, match=r"title: 6 voxels can be drawn, t-SNE needs at least 10\..*--cases"):
        draw_features(network, cases, (8, 8, 8), 1, LABELS, 8, 0.5, "title")


def test_a_network_without_a_decoder_is_named():
    with pytest.raises(NotImplementedError, match=r"Linear has no decoder\.seg_layers"):
        FeatureNetwork(nn.Linear(2, 2), None, CPU)
