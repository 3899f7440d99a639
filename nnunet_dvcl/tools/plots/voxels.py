"""Features of reliable and unreliable voxels of whole cases, by the network that a checkpoint deploys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.labels import UNKNOWN, Labels
from nnunet_dvcl.networks import last_segmentation_layer, run_with_features
from nnunet_dvcl.tools.plots.cases import Case, Tile, tiles, windows
from nnunet_dvcl.voxels.draws import draw_per_class
from nnunet_dvcl.voxels.entropy_split import split_by_entropy
from nnunet_dvcl.voxels.gathering import gather_rows

_FEWEST_VOXELS = 10


@dataclass
class DrawnVoxels:
    """n voxels, in no particular order."""

    case: list[str]
    features: np.ndarray  # [n, d] float32
    truth: np.ndarray  # [n] int64, the true class
    predicted: np.ndarray  # [n] int64
    entropy: np.ndarray  # [n] float32, nats
    reliable: np.ndarray  # [n] bool

    def __len__(self) -> int:
        return len(self.truth)


class FeatureNetwork:
    """A network with the features that are shown: those of its head, or of the decoder where it has none.

    Raises:
        NotImplementedError: the network has no U-Net decoder.
    """

    def __init__(self, network: nn.Module, head: nn.Module | None, device: torch.device):
        last_segmentation_layer(network)  # there has to be one
        self.network = network.to(device).eval()
        self.head = (head or nn.Identity()).to(device).eval()
        self.device = device

    def classify(self, image: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        """Predicted classes int64 and entropy [nats] float32, [B, *P] each, on the CPU."""
        logits, _ = run_with_features(self.network, image.to(self.device))
        return labels.predicted(logits).cpu(), labels.entropy(logits).cpu()

    def features(self, image: Tensor, voxels: Tensor) -> Tensor:
        """Features [n, d] float32 on the CPU of n voxels, given as indices into the B·prod(P) voxels."""
        _, features = run_with_features(self.network, image.to(self.device))
        return self.head(gather_rows(features, voxels.to(self.device)).float()).cpu()


@torch.inference_mode()
def draw_features(
    network: FeatureNetwork,
    cases: Mapping[str, Case],
    patch_size: Sequence[int],
    batch_size: int,
    labels: Labels,
    count: int,
    entropy_alpha: float,
    title: str,
) -> DrawnVoxels:
    """Splits the voxels of all cases by entropy (Eq. 4-6), draws some of each half and gets their features.

    Two rounds over the tiles: the split needs the entropy of every voxel, and features are kept of drawn voxels alone.

    Args:
        network: as it deploys.
        cases: name -> case.
        patch_size, batch_size: of the plans.
        labels: what the network's output means.
        count: up to half of it reliable and half unreliable voxels, of the true classes as evenly as their sizes allow.
        entropy_alpha: α of the split.
        title: of the progress bar.

    Raises:
        UserError: too few voxels for a picture.
    """

    number = sum(len(windows(case.truth.shape[1:], patch_size, batch_size)) for case in cases.values())

    def all_tiles(what: str) -> Iterator[Tile]:
        shown = (tile for name, case in cases.items() for tile in tiles(name, case, patch_size, batch_size))
        return tqdm(shown, f"{title}, {what}", number, unit="tile")

    found = [_classify(network, tile, labels) for tile in all_tiles("entropy")]
    truth, predicted, entropy = (torch.cat(parts) for parts in zip(*found, strict=True))
    reliable, unreliable, _ = split_by_entropy(entropy, entropy_alpha)
    halves = [truth.where(half, UNKNOWN) for half in (reliable, unreliable)]
    drawn = torch.cat([draw_evenly(half, labels.num_classes, count // 2) for half in halves]).sort().values
    if len(drawn) < _FEWEST_VOXELS:
        raise UserError(
            f"{title}: {len(drawn)} voxels can be drawn, t-SNE needs at least {_FEWEST_VOXELS}. Name more cases with "
            "--cases, or raise --voxels."
        )

    names, features, first = [], [], 0
    for tile in all_tiles("features"):
        voxels = (labels.of_label_map(tile.truth) != UNKNOWN).flatten().nonzero()[:, 0]
        here = drawn[(drawn >= first) & (drawn < first + len(voxels))] - first
        first += len(voxels)
        if len(here):
            names += [tile.case] * len(here)
            features.append(network.features(tile.image, voxels[here]))
    values = (values[drawn].numpy() for values in (truth, predicted, entropy, reliable))
    return DrawnVoxels(names, torch.cat(features).numpy(), *values)


def _classify(network: FeatureNetwork, tile: Tile, labels: Labels) -> tuple[Tensor, Tensor, Tensor]:
    """True class, predicted class and entropy of the tile's voxels whose truth is known, [n] each."""
    predicted, entropy = network.classify(tile.image, labels)
    truth = labels.of_label_map(tile.truth)
    known = truth != UNKNOWN
    return truth[known], predicted[known], entropy[known]


def draw_evenly(classes: Tensor, num_classes: int, count: int) -> Tensor:
    """Up to `count` random voxels: as many of each class as the smaller classes leave room for; always the same ones.

    Args:
        classes: [N] int64 in [-1, C); class -1 is never drawn.
        num_classes: C.
        count: the number of voxels wanted.

    Returns:
        [n] int64 indices into `classes`.
    """
    sizes = [int((classes == c).sum()) for c in range(num_classes)]
    per_class = max(m for m in range(count + 1) if sum(min(size, m) for size in sizes) <= count)
    index, mask = draw_per_class(classes, num_classes, per_class, torch.Generator().manual_seed(0))
    return index[mask]
