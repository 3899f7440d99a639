"""The part of a trainer that logs each term and statistic of its steps as ``ssl/<name>``, and draws them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import join
from nnunetv2.utilities.collate_outputs import collate_outputs

from nnunet_dvcl import distributed
from nnunet_dvcl.trainers.base.panels import DICE, Panel, panels_of
from nnunet_dvcl.trainers.base.progress_plot import plot_progress


class LoggedValues:
    """One value an epoch of all that `train_step` returns, in nnU-Net's log, its logger and ``progress_ssl.png``.

    Steps that were skipped do not count.
    """

    panels: ClassVar[tuple[Panel, ...]] = (
        DICE,
        Panel("weight of the consistency terms", "weight", ("rampup",)),
        Panel("steps that were skipped", "steps", ("skipped_steps",)),
    )
    loss_terms: tuple[str, ...]
    _symptoms: tuple[str, ...] = ()  # of the epoch before

    def epoch_statistics(self) -> dict[str, float]:
        """Scalars, measured after the validation of an epoch and logged as ``ssl/<name>``; runs without gradients."""
        return {}

    def why_zero(self, term: str) -> str:
        """The reason why one of its terms was 0 for a whole epoch."""
        return "it never had anything to compare"

    def symptoms(self, values: Mapping[str, float], dice: float) -> tuple[str, ...]:
        """What an epoch shows to be wrong, and what to do: sentences, each told in the first of the epochs that has it.

        Args:
            values: those that the epoch logged, without ``ssl/``.
            dice: its mean pseudo Dice; nan where its patches had no organ.
        """
        return ()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        of_ranks = distributed.gather_objects(collate_outputs(train_outputs))
        outputs = {key: np.concatenate([of_rank[key] for of_rank in of_ranks]) for key in of_ranks[0] if key != "loss"}
        skipped = outputs.pop("skipped_steps").astype(bool)
        outputs = {key: values[~skipped] for key, values in outputs.items()}
        means = {key: _mean_of_finite(values) for key, values in outputs.items()}
        means["skipped_steps"] = float(skipped.sum()) / len(of_ranks)  # all ranks skip the same steps
        for key, mean in means.items():
            self._log(f"ssl/{key}", mean)
        self._print_values(means)
        for term in self.loss_terms:
            if len(outputs[term]) and not outputs[term].any():
                self.print_to_log_file(f"WARNING: ssl/{term} was 0 for the whole epoch: {self.why_zero(term)}.")

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        super().on_validation_epoch_end(val_outputs)
        statistics = self.epoch_statistics()
        for key, value in statistics.items():
            self._log(f"ssl/{key}", value)
        if statistics:
            self._print_values(statistics)

    def _print_values(self, values: dict[str, float]) -> None:
        self.print_to_log_file("ssl", ", ".join(f"{key} {value:.4g}" for key, value in values.items()))

    def _log(self, key: str, value: float) -> None:
        # nnU-Net's logger wants one value an epoch from the first epoch on, also for keys that came later
        log = self.logger.local_logger.my_fantastic_logging.setdefault(key, [])
        log.extend([float("nan")] * (self.current_epoch - len(log)))
        self.logger.log(key, value, self.current_epoch)

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self.local_rank != 0:
            return
        logging = self.logger.get_checkpoint()
        ssl = {key.removeprefix("ssl/"): values for key, values in logging.items() if key.startswith("ssl/")}
        dice = {"dice": logging["mean_fg_dice"], "dice_average": logging["ema_fg_dice"]}
        plot_progress(dice | ssl, panels_of(type(self)), join(self.output_folder, "progress_ssl.png"))
        last = {key: values[-1] for key, values in ssl.items() if values}
        symptoms = self.symptoms(last, float(logging["mean_fg_dice"][-1]))  # nnU-Net's is NumPy's
        for text in symptoms:
            if text not in self._symptoms:
                self.print_to_log_file(f"WARNING: {text}")
        self._symptoms = symptoms


def _mean_of_finite(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")
