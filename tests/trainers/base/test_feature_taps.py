"""Taps on any layer of the students, and rows of their features."""

import pytest
import torch

from nnunet_dvcl.networks import FeatureTap, unwrap
from nnunet_dvcl.trainers.base import Features, FeaturesConfig, Reach, Term, Twins, TwinsConfig, nnUNetTrainerSSL


class OfFeaturesConfig(FeaturesConfig, TwinsConfig):
    """Both parts' values."""


class nnUNetTrainerOfFeatures(Features, Twins, nnUNetTrainerSSL):
    """The smallest method with features, of twins."""

    config_class = OfFeaturesConfig
    reaches = {"spread": Reach.of("A B head_A head_B", "any")}

    def ssl_terms(self, step):
        index = torch.arange(8, device=self.device)
        rows = [self.project(name, volume, index) for name, volume in step.features.items()]
        return {"spread": Term.scaled(sum(row.square().mean() for row in rows), 0.1)}


class nnUNetTrainerOfTheEncoder(nnUNetTrainerOfFeatures):
    """Of the coarsest stage."""

    feature_layer = "encoder.stages.2"

    def num_features(self, network):
        return unwrap(network).encoder.output_channels[2]


@pytest.mark.parametrize(
    ("trainer_class", "channels", "size"), [(nnUNetTrainerOfFeatures, 4, 16), (nnUNetTrainerOfTheEncoder, 16, 4)]
)
def test_the_feature_map_of_a_layer(start, trainer_class, channels, size):
    trainer = start(trainer_class, "2d_tiny", feature_dim=5)
    seen, ssl_terms = [], trainer.ssl_terms
    trainer.ssl_terms = lambda step: (ssl_terms(step), seen.append(step))[0]
    output = trainer.train_step(next(trainer.dataloader_train))
    assert output["spread"] > 0
    assert {name: tuple(volume.shape) for name, volume in seen[0].features.items()} == {
        name: (4, channels, size, size) for name in "AB"
    }
    for name, network in trainer.students().items():
        stem = next(iter(unwrap(network).encoder.parameters()))
        assert stem.grad.abs().sum() > 0
        assert all(p.grad.any() for p in trainer.companions[f"head_{name}"].parameters())


def test_sampled_first_or_projected_first_is_the_same(start):
    trainer = start(nnUNetTrainerOfFeatures, "2d_tiny")
    volume, index = torch.randn(2, 4, 16, 16), torch.tensor([[3, 500], [17, 256]])
    dense = trainer.companions["head_A"](volume.movedim(1, -1).flatten(0, -2))
    torch.testing.assert_close(trainer.project("A", volume, index), dense[index])


@pytest.mark.parametrize("compiled", [False, True])
def test_a_tap_on_a_named_layer_passes_its_gradient_on(start, compiled):
    network = unwrap(start(nnUNetTrainerOfFeatures, "2d_tiny").network)
    image = torch.randn(1, 1, 16, 16)
    kept = []
    network.encoder.stages[1].register_forward_hook(lambda layer, inputs, output: kept.append(output))
    tap = FeatureTap(network, compiled, "encoder.stages.1")
    network(image)
    features = tap.pop()
    assert torch.equal(features, kept[0])
    features.square().sum().backward()
    assert next(network.encoder.stages[0].parameters()).grad.any()
    with pytest.raises(RuntimeError, match="no features"):
        tap.pop()


def test_a_layer_that_is_not_there_is_named(start):
    with pytest.raises(AttributeError, match="stage_9"):
        FeatureTap(start(nnUNetTrainerOfFeatures, "2d_tiny").network, layer="encoder.stage_9")
