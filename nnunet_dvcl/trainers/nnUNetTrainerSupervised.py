"""nnU-Net's own training under our schedule keys: the supervised baseline of every comparison."""

from __future__ import annotations

from nnunet_dvcl.trainers.base import nnUNetTrainerPlugin
from nnunet_dvcl.trainers.base.step import to_device, to_host


class nnUNetTrainerSupervised(nnUNetTrainerPlugin):
    """nnUNetTrainer whose optimizer, learning rate, length and seed come from the plans' key ``"ssl"``.

    With the default values it trains as nnUNetTrainer does. It ignores unlabeled scans.
    """

    def train_step(self, batch: dict) -> dict[str, float]:
        """nnU-Net's own, but a loss that is not finite changes nothing."""
        self.check_labels(batch)
        image, target = batch["data"].to(self.device, non_blocking=True), to_device(batch["target"], self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss(self.network(image), target)
        updated = self.update_weights(loss)
        output = to_host({"loss": loss.detach(), "skipped_steps": ~updated})
        self.count_step(output["skipped_steps"], {"loss": output["loss"]}, batch)
        return output
