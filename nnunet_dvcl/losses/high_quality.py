"""HqCL: high-quality voxel-wise contrast of reliable voxels (Eq. 7-10)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_dvcl.voxels.precision import at_least_float32, full_precision


class HighQualityContrastiveLoss(nn.Module):
    """InfoNCE of each anchor against its class center and voxels mistaken for its class: DVCL, Eq. 10.

    Anchors (Eq. 7) are pulled to the center of their class (Eq. 8) and pushed away from labeled voxels that were
    wrongly predicted as that class (Eq. 9). The gradient reaches anchors and negatives, never the centers.

    Args:
        num_negatives: N, the negatives of one anchor, drawn from the pool of its class without replacement.
        temperature: σ of Φ_σ(a, b) = exp(cos(a, b)/σ).

    Raises:
        ValueError: num_negatives below 1 or temperature not above 0.
    """

    def __init__(self, num_negatives: int = 50, temperature: float = 1.0):
        super().__init__()
        if num_negatives < 1:
            raise ValueError(f"num_negatives is {num_negatives}, expected at least 1")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}, expected a number above 0")
        self.num_negatives = num_negatives
        self.temperature = temperature

    def forward(
        self,
        anchors: Tensor,
        anchor_mask: Tensor,
        centers: Tensor,
        center_mask: Tensor,
        negatives: Tensor,
        negative_mask: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The mean over all C classes of L_c (Eq. 10); a class without anchors, center or negatives adds 0.

        Args:
            anchors: [C, M, d] features; rows outside the mask are ignored.
            anchor_mask: [C, M] bool.
            centers: [C, d] the positive candidate of each class (Eq. 8); detached here.
            center_mask: [C] bool, False: the class has no center yet.
            negatives: [C, P, d] the pool of each class (Eq. 9). P <= num_negatives: every anchor meets all of it.
            negative_mask: [C, P] bool.
            generator: torch's random generator for the draw of negatives, on the device of `negatives`.

        Returns:
            [] at least float32.
        """
        anchors = F.normalize(at_least_float32(anchors), dim=-1)
        centers = F.normalize(at_least_float32(centers.detach()), dim=-1)
        negatives = F.normalize(at_least_float32(negatives), dim=-1)

        with full_precision(anchors.device):
            positive = torch.einsum("cmd,cd->cm", anchors, centers) / self.temperature
            negative = torch.einsum("cmd,cpd->cmp", anchors, negatives) / self.temperature
        negative = self._draw(negative.masked_fill(~negative_mask[:, None], -torch.inf), generator)  # [C, M, N]

        # logsumexp([s+, s-]) - s+ = -log of Eq. 10, finite for every temperature
        loss = torch.logsumexp(torch.cat((positive[..., None], negative), -1), -1) - positive  # [C, M]
        active = anchor_mask & (center_mask & negative_mask.any(-1))[:, None]  # [C, M]
        per_class = loss.masked_fill(~active, 0.0).sum(-1) / active.sum(-1).clamp(min=1)
        return per_class.mean()

    def _draw(self, similarities: Tensor, generator: torch.Generator | None) -> Tensor:
        """Each anchor's own N of the pool without replacement: [C, M, P] -> [C, M, min(N, P)]; masked ones last."""
        if similarities.shape[-1] <= self.num_negatives:
            return similarities
        keys = torch.rand(similarities.shape, generator=generator, dtype=similarities.dtype, device=similarities.device)
        keys = keys.masked_fill(similarities.isneginf(), -1.0)
        return similarities.gather(-1, keys.topk(self.num_negatives, dim=-1, sorted=False).indices)

    def extra_repr(self) -> str:
        return f"num_negatives={self.num_negatives}, temperature={self.temperature}"
