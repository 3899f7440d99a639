"""The part of a trainer that shows how far it is, and how long it will take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_dvcl.progress import TIMED, Progress, beside_bars, in_words, with_progress

_UNTIMED = 5  # first steps: networks are compiled, memory is allocated


class ShownProgress:
    """Rank 0 shows each epoch's steps and validation, and the final validation; nnU-Net's own lines stay as they are.

    A step is timed from the end of the one before to its own, as the host sees them: nothing waits for the device that
    would not anyway.
    """

    _progress: Progress | None = None  # of the steps, or of the validation, of this epoch
    _pace: Pace

    def on_train_start(self) -> None:
        super().on_train_start()
        epochs = self.num_epochs - self.current_epoch
        self._pace = Pace(epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch)

    def on_epoch_start(self) -> None:
        super().on_epoch_start()
        self._pace.begin_epoch()
        self._progress = self._new_progress("Epoch {}", self.num_iterations_per_epoch, "step")

    def show_step(self) -> None:
        """A training step is done."""
        if self._progress is None:  # a step outside of a training
            return
        self._pace.count_step()
        left = self._pace.left
        self._progress.advance("" if left is None else f"training: {in_words(left)} left")
        if self._pace.steps_done == TIMED:
            pace = self._pace
            self.print_to_log_file(f"{pace.step:.3g} s a step, {pace.epochs} epochs: about {in_words(pace.all)} in all")

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        self._end_progress()
        super().on_train_epoch_end(train_outputs)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._progress = self._new_progress("Validation of epoch {}", self.num_val_iterations_per_epoch, "batch")

    def validation_step(self, batch: dict) -> dict:
        output = super().validation_step(batch)
        if self._progress is not None:
            self._progress.advance()
        return output

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        self._end_progress()
        super().on_validation_epoch_end(val_outputs)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        of_cases = self.dataset_class
        self.dataset_class = self._with_shown_cases(of_cases)
        try:
            super().perform_actual_validation(save_probabilities)
        finally:
            self.dataset_class = of_cases

    def print_to_log_file(self, *args, **kwargs) -> None:
        with beside_bars():
            super().print_to_log_file(*args, **kwargs)

    def _new_progress(self, title: str, total: int, unit: str) -> Progress:
        return Progress(title.format(self.current_epoch), total, unit, shown=self.local_rank == 0)

    def _end_progress(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def _with_shown_cases(self, of_cases: type[nnUNetBaseDataset]) -> type[nnUNetBaseDataset]:
        """nnU-Net goes once through the identifiers of the data set that it makes of the validation cases."""
        log, shown = self.print_to_log_file, self.local_rank == 0

        class ShownCases(of_cases):
            def __init__(self, *args, **kwargs) -> None:
                super().__init__(*args, **kwargs)
                number = len(self.identifiers)
                self.identifiers = with_progress(self.identifiers, "Validation cases", number, "case", log, shown)

        return ShownCases


@dataclass
class Pace:
    """How long a training will take, of the steps that were timed; in seconds.

    Attributes:
        epochs: to be done.
        steps: an epoch.
        validation_batches: an epoch.
    """

    epochs: int
    steps: int
    validation_batches: int
    steps_done: int = field(default=0, init=False)
    _epochs_begun: int = field(default=0, init=False)
    _timed: float = field(default=0.0, init=False)  # all steps but the first few together
    _end: float | None = field(default=None, init=False)  # of the last step
    _rest: float | None = field(default=None, init=False)

    def begin_epoch(self) -> None:
        now = time.monotonic()
        if self._end is not None:
            self._rest = now - self._end
        self._end = now
        self._epochs_begun += 1

    def count_step(self) -> None:
        now = time.monotonic()
        self.steps_done += 1
        if self.steps_done > _UNTIMED:
            self._timed += now - self._end
        self._end = now

    @property
    def step(self) -> float | None:
        """Of a step."""
        return self._timed / (self.steps_done - _UNTIMED) if self.steps_done > _UNTIMED else None

    @property
    def rest(self) -> float:
        """Of an epoch after its steps. Before the first: a forward pass alone is a third of a step, or less."""
        return self._rest if self._rest is not None else self.step * self.validation_batches / 3

    @property
    def all(self) -> float:
        return self.epochs * (self.steps * self.step + self.rest)

    @property
    def left(self) -> float | None:
        """From the last step on; None while no step was timed."""
        if self.step is None:
            return None
        epochs = self.epochs - self._epochs_begun + 1
        return (self.epochs * self.steps - self.steps_done) * self.step + epochs * self.rest
