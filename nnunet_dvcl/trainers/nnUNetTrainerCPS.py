"""Cross pseudo supervision: row 1 of the paper's Table 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pydantic import model_validator
from torch import Tensor

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.trainers.base import (
    Output,
    Panel,
    Passes,
    PseudoLabels,
    PseudoLabelsConfig,
    Reach,
    Step,
    Term,
    Twins,
    TwinsConfig,
    nnUNetTrainerSSL,
)


class CPSConfig(PseudoLabelsConfig, TwinsConfig):
    """CPS has no values beside those of its parts."""

    @property
    def labels_are_outputs(self) -> bool:
        """Whether both networks see one image as it is: then what one says in its only run is the other's label."""
        return self.views == "same" and self.cutmix_probability == 0

    @model_validator(mode="after")
    def _check_views(self) -> CPSConfig:
        if self.independent_intensities and not self.labels_are_outputs:
            raise UserError(
                "ssl.independent_intensities is true, expected false with weak and strong views or CutMix, which both "
                'networks share. To use it, set ssl.views="same" and ssl.cutmix_probability=0, or train a _SameView '
                "trainer."
            )
        return self


class nnUNetTrainerCPS(PseudoLabels, Twins, nnUNetTrainerSSL):
    """Two networks of one plan, each supervised by the labels and by the other's pseudo-labels: DVCL, Eq. 1-3.

    Pseudo-labels weigh as much as labels, by nnU-Net's own loss, and are learned on mixed patches (CutMix). With the
    paper's weight, loss and patches: `nnUNetTrainerCPS_SameView`.
    """

    config_class: ClassVar[type[CPSConfig]] = CPSConfig
    config: CPSConfig
    reaches = {"cps": Reach.of("A B", "unlabeled")}
    panels = (Panel("share of unlabeled voxels", "share", ("agreement",), first=True),)
    passes = Passes(trained=2, forward=1)  # two teachers, unlabeled patches alone

    def teachers(self) -> dict[str, Callable[[Tensor], Output]]:
        students = self.students()
        return {} if self.config.labels_are_outputs else {"A": students["B"], "B": students["A"]}

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        a, b = (step.unlabeled_patches(step.predicted(name)) for name in self.student_names)
        if self.config.labels_are_outputs:
            step.pseudo_labels.update(A=b, B=a)
        step.record(agreement=((a == b) & step.unlabeled).sum() / step.num_unlabeled)
        return {"cps": self.pseudo_label_term(step)}

    def why_zero(self, term: str) -> str:
        if term == "cps":
            return self.why_no_pseudo_labels()
        return super().why_zero(term)
