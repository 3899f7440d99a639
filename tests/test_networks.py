import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_dvcl.networks import (
    FeatureHead,
    FeatureTap,
    last_segmentation_layer,
    run_again_for_gradients,
    run_with_features,
    unwrap,
)

FEATURES = [4, 8, 16]
NETWORKS = [(PlainConvUNet, 2), (PlainConvUNet, 3), (ResidualEncoderUNet, 2), (ResidualEncoderUNet, 3)]


def build(network_class=PlainConvUNet, dim: int = 2, deep_supervision: bool = True) -> nn.Module:
    blocks = "n_conv_per_stage" if network_class is PlainConvUNet else "n_blocks_per_stage"
    return network_class(
        input_channels=1,
        n_stages=3,
        features_per_stage=FEATURES,
        conv_op=nn.Conv2d if dim == 2 else nn.Conv3d,
        kernel_sizes=3,
        strides=[1, 2, 2],
        num_classes=3,
        n_conv_per_stage_decoder=1,
        norm_op=nn.InstanceNorm2d if dim == 2 else nn.InstanceNorm3d,
        nonlin=nn.LeakyReLU,
        deep_supervision=deep_supervision,
        **{blocks: 1},
    )


def image(dim: int) -> torch.Tensor:
    return torch.randn(2, 1, *[16] * dim)


@pytest.fixture
def process_group(tmp_path):
    """A group of one process, which DistributedDataParallel asks for."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("compiled", [False, True])
def test_unwrap_gives_the_network_itself(compiled):
    network = build()
    assert unwrap(torch.compile(network) if compiled else network) is network


@pytest.mark.parametrize("compiled", [False, True])
def test_unwrap_takes_ddp_off_first(process_group, compiled):
    network = build()
    inner = torch.compile(network) if compiled else network
    assert unwrap(DistributedDataParallel(inner)) is network


@pytest.mark.parametrize(("network_class", "dim"), NETWORKS)
def test_the_last_segmentation_layer_makes_the_full_resolution_output(network_class, dim):
    network = build(network_class, dim)
    layer = last_segmentation_layer(network)
    made = []
    layer.register_forward_hook(lambda module, inputs, output: made.append(output))
    full, half = network(image(dim))
    assert made == [full]
    assert full.shape == (2, 3, *[16] * dim)
    assert half.shape == (2, 3, *[8] * dim)
    assert layer.in_channels == FEATURES[0]
    assert last_segmentation_layer(torch.compile(network)) is layer


@pytest.mark.parametrize("part", [None, nn.Identity(), nn.ModuleDict({"seg_layers": nn.ModuleList()})])
def test_a_network_without_a_unets_decoder_is_named(part):
    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            if part is not None:
                self.decoder = part

    for ask in (last_segmentation_layer, FeatureTap):
        with pytest.raises(NotImplementedError, match=r"^Transformer has no decoder\.seg_layers"):
            ask(Transformer())


@pytest.mark.parametrize(("network_class", "dim"), NETWORKS)
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_the_tap_holds_the_input_of_the_last_segmentation_layer(network_class, dim, deep_supervision):
    network = build(network_class, dim, deep_supervision)
    tap = FeatureTap(network)
    output = network(image(dim))
    features = tap.pop()
    assert features.shape == (2, FEATURES[0], *[16] * dim)
    assert features.requires_grad
    full_resolution = output[0] if deep_supervision else output
    torch.testing.assert_close(last_segmentation_layer(network)(features), full_resolution)


def test_the_tap_holds_the_latest_forward():
    network = build(deep_supervision=False)
    tap = FeatureTap(network)
    network(image(2))
    output = network(image(2))
    torch.testing.assert_close(last_segmentation_layer(network)(tap.pop()), output)


def test_features_are_handed_over_once():
    network = build()
    tap = FeatureTap(network)
    with pytest.raises(RuntimeError, match="not run in training mode"):
        tap.pop()
    network(image(2))
    tap.pop()
    with pytest.raises(RuntimeError, match="not run in training mode"):
        tap.pop()


def test_validation_leaves_no_features_behind():
    network = build().eval()
    tap = FeatureTap(network)
    network(image(2))
    with pytest.raises(RuntimeError, match="not run in training mode"):
        tap.pop()
    network.train()(image(2))
    features = tap.pop()
    assert len(features) == 2


def test_the_tap_adds_nothing_to_the_networks_state():
    network = build()
    before = network.state_dict().keys()
    FeatureTap(network)
    assert network.state_dict().keys() == before


def test_each_network_has_a_tap_of_its_own():
    networks = [build(), build()]
    taps = [FeatureTap(network) for network in networks]
    networks[0](image(2))
    assert taps[0].pop() is not None
    with pytest.raises(RuntimeError):
        taps[1].pop()


def test_a_compiled_forward_fills_the_tap():
    network = build(deep_supervision=False)
    tap = FeatureTap(network)
    output = torch.compile(network, backend="eager")(image(2))
    torch.testing.assert_close(last_segmentation_layer(network)(tap.pop()), output)


@pytest.mark.parametrize(("network_class", "dim"), NETWORKS)
@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_features_outside_of_training(network_class, dim, deep_supervision, compiled):
    network = build(network_class, dim, deep_supervision)
    tap = FeatureTap(network)
    layer = last_segmentation_layer(network)
    hooks = len(layer._forward_pre_hooks)
    logits, features = run_with_features(torch.compile(network) if compiled else network, image(dim))
    assert features.shape == (2, FEATURES[0], *[16] * dim)
    torch.testing.assert_close(layer.forward(features), logits)  # forward: without hooks
    assert not logits.requires_grad
    assert network.training
    assert len(layer._forward_pre_hooks) == hooks
    with pytest.raises(RuntimeError, match="not run in training mode"):
        tap.pop()


def test_features_outside_of_training_leave_the_mode():
    network = build().eval()
    run_with_features(network, image(2))
    assert not network.training


@pytest.mark.parametrize(("rows", "in_features", "dim"), [(7, 4, 64), (0, 32, 8), (1, 1, 1)])
def test_the_head_projects_rows(rows, in_features, dim):
    head = FeatureHead(in_features, dim)
    assert head(torch.randn(rows, in_features)).shape == (rows, dim)
    assert [tuple(p.shape) for p in head.parameters()] == [
        (in_features, in_features),
        (in_features,),
        (dim, in_features),
        (dim,),
    ]


def test_the_head_treats_each_row_alone():
    head, rows = FeatureHead(4, 8), torch.randn(20, 4)
    torch.testing.assert_close(head(rows)[3:4], head(rows[3:4]))


def test_the_head_is_not_linear():
    torch.manual_seed(0)  # a head whose biases outweigh the row is linear around it
    head, row = FeatureHead(4, 8), torch.randn(1, 4)
    zero = head(torch.zeros(1, 4))
    assert not torch.allclose(head(-row) - zero, -(head(row) - zero), atol=1e-4)


def _trained_once(run) -> tuple[list[torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    """Gradients, buffers and tapped features of a network with dropout and running statistics, after one backward."""
    torch.manual_seed(0)
    network = build()
    network.encoder.stages[1].insert(0, nn.BatchNorm2d(FEATURES[0]))
    network.encoder.stages[1].insert(1, nn.Dropout(0.5))
    tap = FeatureTap(network)
    outputs = run(network, image(2))
    features = tap.pop()
    total = sum(output.square().mean() for output in outputs) + features.square().mean()
    torch.autograd.grad(total, features, retain_graph=True)  # asked for twice
    total.backward()
    with pytest.raises(RuntimeError, match="no features"):
        tap.pop()
    return [p.grad for p in network.parameters()], dict(network.named_buffers()), features.detach()


def test_a_second_run_gives_the_same_gradients_and_leaves_no_trace():
    gradients, buffers, features = _trained_once(lambda network, x: network(x))
    again, buffers_again, features_again = _trained_once(run_again_for_gradients)
    assert buffers["encoder.stages.1.0.num_batches_tracked"] == 1
    torch.testing.assert_close(again, gradients)
    torch.testing.assert_close(buffers_again, buffers)
    torch.testing.assert_close(features_again, features)


def test_until_then_nothing_is_kept_for_the_gradients():
    network = build()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        run_again_for_gradients(network, image(2))
    assert len(kept) <= 1
