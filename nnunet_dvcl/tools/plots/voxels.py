"""Features of reliable and unreliable voxels of whole cases, by the network that a checkpoint deploys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from pandas import DataFrame
from torch import Tensor, nn

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.labels import UNKNOWN, Labels
from nnunet_dvcl.networks import last_segmentation_layer, run_with_features
from nnunet_dvcl.progress import with_progress
from nnunet_dvcl.tools.plots.cases import Case, tiles, windows
from nnunet_dvcl.voxels.draws import draw_per_class
from nnunet_dvcl.voxels.entropy_split import split_by_entropy
from nnunet_dvcl.voxels.gathering import gather_rows

_FEWEST_VOXELS = 10


class FeatureNetwork:
    """A network and its head, or none, whose features are shown; ``NotImplementedError`` without a U-Net decoder."""

    def __init__(self, network: nn.Module, head: nn.Module | None, device: torch.device):
        last_segmentation_layer(network)  # there has to be one
        self.network = network.to(device).eval()
        self.head = (head or nn.Identity()).to(device).eval()
        self.device = device

    def run(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C, *P] and the decoder's features [B, F, *P]."""
        return run_with_features(self.network, image.to(self.device))

    def features(self, image: Tensor, voxels: Tensor) -> Tensor:
        """Features [n, d] float32 on the CPU of n voxels, given as indices into the B·prod(P) voxels."""
        return self.head(gather_rows(self.run(image)[1], voxels.to(self.device)).float()).cpu()


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
) -> tuple[DataFrame, np.ndarray]:
    """Splits the voxels of all cases by entropy (Eq. 4-6), draws some of each half and gets their features.

    Two rounds over the tiles: the split needs the entropy of every voxel, and features are kept of drawn voxels alone.

    Args:
        count: up to half of it reliable and half unreliable voxels, of the true classes as evenly as their sizes allow.
        entropy_alpha: α of the split.
        title: of the progress bar.

    Returns:
        ``case``, ``truth``, ``predicted``, ``entropy`` [nats] and ``reliable`` of n voxels; features [n, d] float32.

    Raises:
        UserError: too few voxels for a picture.
    """
    number = sum(len(windows(case.truth.shape[1:], patch_size, batch_size)) for case in cases.values())

    def known_voxels(what: str) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
        """Of each tile the case, the image, and the indices and true classes [n] of the voxels that have one."""
        every = ((name, *tile) for name, case in cases.items() for tile in tiles(case, patch_size, batch_size))
        for name, image, truth in with_progress(every, f"{title}, {what}", number, "tile", print):
            classes = labels.of_label_map(truth).flatten()
            voxels = (classes != UNKNOWN).nonzero()[:, 0]
            yield name, image, voxels, classes[voxels]

    found = []
    for _, image, voxels, classes in known_voxels("entropy"):
        logits, _ = network.run(image)
        seen = (values(logits).cpu().flatten()[voxels] for values in (labels.predicted, labels.entropy))
        found.append((classes, *seen))
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
    for name, image, voxels, _ in known_voxels("features"):
        here = drawn[(drawn >= first) & (drawn < first + len(voxels))] - first
        first += len(voxels)
        if len(here):
            names += [name] * len(here)
            features.append(network.features(image, voxels[here]))
    columns = {"truth": truth, "predicted": predicted, "entropy": entropy, "reliable": reliable}
    table = DataFrame({"case": names, **{column: values[drawn].numpy() for column, values in columns.items()}})
    return table, torch.cat(features).numpy()


def draw_evenly(classes: Tensor, num_classes: int, count: int) -> Tensor:
    """Up to `count` random voxels, always the same: as many of each class as the smaller ones leave room for.

    `classes` are [N] int64 in [-1, num_classes), of which -1 is never drawn; returns indices into them, [n] int64.
    """
    sizes = [int((classes == c).sum()) for c in range(num_classes)]
    per_class = max(m for m in range(count + 1) if sum(min(size, m) for size in sizes) <= count)
    index, mask = draw_per_class(classes, num_classes, per_class, torch.Generator().manual_seed(0))
    return index[mask]
