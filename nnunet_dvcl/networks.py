"""What methods add to a network: taps on its layers, dropout, a feature head, a second run for its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from nnunet_dvcl.voxels.gathering import with_dense_gradient


def unwrap(network: nn.Module) -> nn.Module:
    """The network itself, without DistributedDataParallel and torch.compile around it."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network


def last_segmentation_layer(network: nn.Module) -> nn.Module:
    """The decoder's layer that makes the full-resolution output.

    Raises:
        NotImplementedError: the network has no U-Net decoder with ``decoder.seg_layers``.
    """
    layers = getattr(getattr(unwrap(network), "decoder", None), "seg_layers", None)
    if not layers:
        raise NotImplementedError(
            f"{type(unwrap(network)).__name__} has no decoder.seg_layers, and this method needs the input of the "
            "decoder's last segmentation layer. Use one of nnU-Net's U-Nets, or a method that looks at the output "
            "alone: nnUNetTrainerCPS."
        )
    return layers[-1]


def freeze_idle_layers(network: nn.Module) -> nn.Module:
    """Freezes what no loss can reach: DistributedDataParallel would wait for its gradient, and fail in the second step.

    nnU-Net's decoder has a segmentation layer a level; without deep supervision only the last one is run.
    """
    decoder = getattr(unwrap(network), "decoder", None)
    if getattr(decoder, "deep_supervision", None) is False:
        decoder.seg_layers[:-1].requires_grad_(False)
    return network


def drop_channels(network: nn.Module, probability: float) -> None:
    """Drops whole channels in training mode: of what the encoder ends with, and before the last segmentation layer.

    That is where UA-MT (Yu et al., MICCAI 2019, section 3) does. As hooks, so that the weights' names are those of the
    plan's network. Call it before the first compiled forward, else ``torch.compile`` does not see them.

    Raises:
        NotImplementedError: the network has no segmentation layers.
    """
    last_layer, last_stage = last_segmentation_layer(network), unwrap(network).encoder.stages[-1]

    def drop(features: Tensor) -> Tensor:
        return (F.dropout3d if features.ndim == 5 else F.dropout2d)(features, probability)

    last_stage.register_forward_hook(lambda layer, _, output: drop(output) if layer.training else None)
    last_layer.register_forward_pre_hook(lambda layer, inputs: drop(inputs[0]) if layer.training else None)


def full_resolution(output: Tensor | list[Tensor]) -> Tensor:
    """The first level of deep supervision, or all there is."""
    return output[0] if isinstance(output, (list, tuple)) else output


def ready_to_gather(output: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """The same output, with a full resolution that `gather_rows` can take rows of."""
    if isinstance(output, (list, tuple)):
        return [with_dense_gradient(output[0]), *output[1:]]
    return with_dense_gradient(output)


def tensors_in(state: Any) -> Iterator[Tensor]:
    """Every tensor of nested dicts and lists, as a state_dict may be."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (dict, list, tuple)):
        for value in state.values() if isinstance(state, dict) else state:
            yield from tensors_in(value)


# True in the second run of `run_again_for_gradients`
_runs_again: ContextVar[bool] = ContextVar("runs_again", default=False)
_taps: WeakSet[FeatureTap] = WeakSet()


class FeatureTap:
    """Keeps a feature map, [B, F, *S], of the latest forward in training mode.

    Register it before the first compiled forward, else ``torch.compile`` does not see it.

    Args:
        network: a U-Net.
        compiled: whether the network will be compiled: it then has no path from these features to its output.
        layer: the name of the layer whose output is kept, for instance "encoder.stages.3"; None: what goes into the
            last segmentation layer.

    Raises:
        AttributeError: no such layer.
        NotImplementedError: the network has no segmentation layers.
    """

    def __init__(self, network: nn.Module, compiled: bool = False, layer: str | None = None):
        self.network = unwrap(network)
        self.compiled = compiled
        self._features: Tensor | None = None
        _taps.add(self)
        if layer is None:
            last_segmentation_layer(network).register_forward_pre_hook(self._before)
        else:
            unwrap(network).get_submodule(layer).register_forward_hook(self._after)

    def _before(self, layer: nn.Module, inputs: tuple[Any, ...]) -> Tensor | None:
        return self._keep(layer, inputs[0])

    def _after(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return self._keep(layer, output)

    def _keep(self, layer: nn.Module, features: Tensor) -> Tensor | None:
        if not layer.training:
            return None
        if self.compiled:  # what is kept is an output of the graph, and a second run has to trace the same one
            self._features = features
        elif _runs_again.get():
            return None
        else:  # within an eager network, the gradient of the layer is there for that of the rows to be added to
            self._features = with_dense_gradient(features)
        return self._features

    def drop(self) -> None:
        """Forgets the features of a run that nobody asks for."""
        self._features = None

    def pop(self) -> Tensor:
        """Hands the features over, once, with their graph: not to be called where gradients are off.

        Raises:
            RuntimeError: no forward in training mode since the last call.
        """
        features, self._features = self._features, None
        if features is None:
            raise RuntimeError("no features: the network was not run in training mode since the last call")
        return with_dense_gradient(features) if self.compiled else features


@torch.no_grad()
def run_with_features(network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """One forward outside of training: logits [B, C, *S] at full resolution, and the features [B, F, *S] behind them.

    Runs the network in evaluation mode and without torch.compile; leaves its mode, hooks and taps as they were.
    """
    network = unwrap(network)
    seen: list[Tensor] = []
    hook = last_segmentation_layer(network).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    training = network.training
    try:
        output = network.eval()(image)
    finally:
        network.train(training)
        hook.remove()
    return full_resolution(output), seen[0]


def run_again_for_gradients(network: nn.Module, image: Tensor) -> Tensor | list[Tensor]:
    """The network's output, without what its gradients need: that is computed by a second run when they are asked for.

    The second run has the random numbers of the first. Running statistics count the batch once, taps see it once.
    """
    return checkpoint(network, image, use_reentrant=False, context_fn=lambda: (nullcontext(), _SecondRun(network)))


class _SecondRun:
    """Leaves no trace: buffers, such as the running mean of a BatchNorm, keep their content; taps look away.

    A block that can be entered again, for gradients that are asked for more than once.
    """

    def __init__(self, network: nn.Module):
        self.network = network

    def __enter__(self) -> None:
        self.before = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        self.token = _runs_again.set(True)

    def __exit__(self, *_: Any) -> None:
        _runs_again.reset(self.token)
        for tap in _taps:
            if tap.network is unwrap(self.network):
                tap.drop()
        for buffer, content in self.before:
            buffer.copy_(content)


class FeatureHead(nn.Sequential):
    """Linear(F → F), LeakyReLU, Linear(F → d): the feature head of DVCL, section 3.1, on rows.

    No normalization over space, so sampling voxels first and projecting them after is exact.

    Args:
        in_features: F, the channels of the decoder's last feature map.
        feature_dim: d.
    """

    def __init__(self, in_features: int, feature_dim: int):
        super().__init__(nn.Linear(in_features, in_features), nn.LeakyReLU(), nn.Linear(in_features, feature_dim))
