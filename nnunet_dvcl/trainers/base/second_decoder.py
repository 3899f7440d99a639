"""The native host of a method with two decoders on one encoder."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from nnunet_dvcl.networks import FeatureTap, last_segmentation_layer, unwrap
from nnunet_dvcl.trainers.base.checkpoint import Weights
from nnunet_dvcl.trainers.base.host import Host
from nnunet_dvcl.trainers.base.step import Output


class SecondDecoder(nn.Module):
    """The decoder of a network of the same plan; what it decodes is what network A has encoded.

    Args:
        network: A. Taps are put on its encoder: to be called before its first compiled forward.
        like: a network of the same plan, which gives its decoder.
        compiled: whether A will be compiled.

    Raises:
        NotImplementedError: the network has no U-Net decoder.
    """

    def __init__(self, network: nn.Module, like: nn.Module, compiled: bool):
        super().__init__()
        last_segmentation_layer(network)
        self.decoder = like.decoder
        del self.decoder.encoder  # nnU-Net's decoder keeps the encoder that it was made for
        stages = range(len(unwrap(network).encoder.stages))
        self.taps = [FeatureTap(network, compiled, f"encoder.stages.{i}") for i in stages]

    def forward(self, skips: list[Tensor]) -> Tensor | list[Tensor]:
        return self.decoder(skips)


class TwoDecoders(Host):
    """Students A and B. B is a decoder on A's encoder, without a teacher; with `host="cps"` a network of its own.

    What deploys is A.
    """

    student_names = ("A", "B")
    has_teacher = False

    def build_second(self) -> nn.Module:
        network = super().build_second()
        if self.config.host == "cps":
            return network
        return SecondDecoder(self.network, network, self._do_i_compile())

    def teachers(self) -> dict[str, Callable[[Tensor], Output]]:
        return super().teachers() if self.config.host == "cps" else {}

    def forward(self, name: str, image: Tensor) -> Output:
        if name == "A" or self.config.host == "cps":
            return super().forward(name, image)
        return self.companions["B"]([tap.pop() for tap in unwrap(self.companions["B"]).taps])

    def networks(self) -> dict[str, nn.Module]:
        return super().networks() if self.config.host == "cps" else {"A": self.network}

    @classmethod
    def saved_networks(cls, checkpoint: dict) -> dict[str, Weights]:
        networks = super().saved_networks(checkpoint)
        return networks if checkpoint["ssl_state"]["config"]["host"] == "cps" else {"A": networks["A"]}
