"""What a step costs, counted in runs of a network."""

from __future__ import annotations

from typing import NamedTuple


class Passes(NamedTuple):
    """Runs of one network over all patches of a step; half of the patches are half a run, so is an encoder alone."""

    trained: float = 1.0  # with gradient: forward and backward
    forward: float = 0.0  # of teachers, without gradient

    @property
    def steps(self) -> float:
        """In training steps of nnU-Net on as many patches: going backward takes twice as long as going forward."""
        return self.trained + self.forward / 3

    @property
    def steps_of_nnunet(self) -> float:
        """In nnU-Net's own steps, which have the labeled patches alone: with the default values half of all."""
        return 2 * self.steps
