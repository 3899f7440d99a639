"""The part of a trainer that has an adversary: it tells maps of labeled images from those of unlabeled ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_dvcl import distributed
from nnunet_dvcl.options import Count, Positive, Share
from nnunet_dvcl.trainers.base.nnUNetTrainerSSL import SSLConfig
from nnunet_dvcl.trainers.base.step import Step
from nnunet_dvcl.trainers.base.update import update


class AdversaryConfig(SSLConfig):
    """What an adversary adds."""

    adversary_lr: Positive = 1e-4  # learning rate of its first epoch; falls as nnU-Net's does
    adversary_width: Count = 64  # channels of its first layer; each of up to three more has twice as many
    adversary_dropout: Share = 0.5  # chance of its channels to be dropped while it learns


class Discriminator(nn.Module):
    """One logit a patch, above 0: "labeled". It takes its optimizer and gradient scaler along in its state.

    Strided convolutions with LeakyReLU and dropout of channels, then the mean over space, as the discriminators of DAN
    and SASSNet; what it sees shrinks as in the network, so also where patches are anisotropic.

    Args:
        channels: of the map and the image together.
        strides: of its convolutions, each 2 or 3 numbers; they divide the patch.
        width: channels of the first convolution; doubled by each further one.
        dropout: chance of a channel to be dropped, between convolutions.
        learning_rate: of Adam.
        scaler: of gradients in mixed precision, its own; None without.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[Sequence[int]],
        width: int,
        dropout: float,
        learning_rate: float,
        scaler: torch.amp.GradScaler | None = None,
    ):
        super().__init__()
        conv, drop = ((nn.Conv2d, nn.Dropout2d), (nn.Conv3d, nn.Dropout3d))[len(strides[0]) - 2]
        widths = [channels, *(width << level for level in range(len(strides)))]
        layers: list[nn.Module] = []
        for (before, after), stride in zip(pairwise(widths), strides, strict=True):
            layers += [drop(dropout)] if layers else []
            # a kernel of stride + 2 with one voxel of padding divides the size by the stride
            layers += [conv(before, after, [s + 2 for s in stride], stride, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], 1)
        self.optimizer = torch.optim.Adam(self.parameters(), learning_rate, betas=(0.9, 0.99))
        self.scaler = scaler

    def forward(self, maps: Tensor, image: Tensor) -> Tensor:
        """[B, C, *S] and [B, channels, *S] -> [B]."""
        return self.head(self.layers(torch.cat((maps, image), 1)).flatten(2).mean(2))[:, 0]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """A block in which it drops no channels, and whose graph gives the discriminator itself no gradient."""
        training = self.training
        self.eval().requires_grad_(False)
        try:
            yield
        finally:
            self.train(training).requires_grad_(True)

    def get_extra_state(self) -> dict:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler and self.scaler.state_dict()}

    def set_extra_state(self, state: dict) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


class Adversary:
    """``self.memory["adversary"]``: trained against the networks, on the maps of the step before its update.

    Equal on all ranks, in the networks' precision, and idle in a step that is skipped. Labeled patches that nnU-Net has
    drawn around an organ are not shown to it: unlabeled ones are drawn anywhere, and it would tell them by that.
    """

    config: AdversaryConfig
    _shown: tuple[Tensor, Tensor, int] | None = None  # maps, images and B_l of the step that is being done

    def build_memory(self) -> dict[str, nn.Module]:
        adversary = Discriminator(
            self.num_map_channels + self.num_input_channels,
            self.configuration_manager.pool_op_kernel_sizes[1:5],
            self.config.adversary_width,
            self.config.adversary_dropout,
            self.config.adversary_lr,
            torch.amp.GradScaler(self.device.type) if self.grad_scaler is not None else None,
        ).to(self.device)
        self._adversary_schedule = PolyLRScheduler(adversary.optimizer, self.config.adversary_lr, self.num_epochs)
        self._adversary_in_training = distributed.wrap(adversary, self.device) if self.is_ddp else adversary
        return super().build_memory() | {"adversary": adversary}

    @property
    def num_map_channels(self) -> int:
        """Of the maps that the adversary sees; by default one a channel of the networks' output."""
        return self.label_manager.num_segmentation_heads

    @property
    def num_drawn_anywhere(self) -> int:
        """How many labeled patches, a batch's first, are not drawn around an organ; all where that is not known."""
        share_around_organs = 0.0 if self.probabilistic_oversampling else self.oversample_foreground_percent
        return round(self.batch_size * (1 - share_around_organs))

    def fool(self, step: Step, maps: Tensor) -> Tensor:
        """The networks' term: the adversary should take maps of unlabeled images for those of labeled ones.

        Args:
            step: its `views` of A are the images.
            maps: [B_l + B_u, num_map_channels, *S], with graph; `after_step` trains the adversary on them.

        Returns:
            [] float32; its gradient reaches what has made the maps outside of padding, and not the adversary.
        """
        image, adversary, number = step.views["A"], self.memory["adversary"], step.num_labeled
        self._shown = maps.detach(), image, number
        unlabeled = maps[number:].where(step.valid[:, None], maps[number:].detach())
        with adversary.frozen(), self.autocast():
            logits = adversary(unlabeled, image[number:])
        return _mean_cross_entropy(logits, 1.0)

    def after_step(self) -> None:
        super().after_step()
        if self._shown is None:
            return
        (maps, image, number), self._shown = self._shown, None
        labeled = min(number, self.num_drawn_anywhere)
        maps, image = (torch.cat((x[:labeled], x[number:])) for x in (maps, image))
        adversary = self.memory["adversary"]
        adversary.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            logits = self._adversary_in_training(maps, image)
        loss = (_mean_cross_entropy(logits[:labeled], 1.0) + _mean_cross_entropy(logits[labeled:], 0.0)) / 2
        parameters = list(adversary.parameters())
        update(loss, adversary.optimizer, adversary.scaler, lambda: nn.utils.clip_grad_norm_(parameters, 12))

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._adversary_schedule.step(self.current_epoch)


def _mean_cross_entropy(logits: Tensor, target: float) -> Tensor:
    """Over the patches of all ranks, which have the same target: [B] -> []; 0 where there are none."""
    logits = logits.float()
    total = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), reduction="sum")
    count = distributed.mean(logits.new_full((), len(logits)))
    return total / count.where(count > 0, 1)
