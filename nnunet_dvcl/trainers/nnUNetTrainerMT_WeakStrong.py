"""One network and its averaged teacher, with weak and strong views: half the cost of twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from nnunet_dvcl.options import choice
from nnunet_dvcl.trainers.base import (
    EMATeacher,
    EMATeacherConfig,
    Output,
    Passes,
    PseudoLabels,
    PseudoLabelsConfig,
    Reach,
    Step,
    Term,
    nnUNetTrainerSSL,
)


class MTWeakStrongConfig(PseudoLabelsConfig, EMATeacherConfig):
    """Where the teacher looks; all else are values of the parts."""

    views: choice("same", "weak_strong") = "weak_strong"  # the teacher's view is a weak one


class nnUNetTrainerMT_WeakStrong(PseudoLabels, EMATeacher, nnUNetTrainerSSL):
    """A student learns what its averaged weights (Tarvainen & Valpola, NeurIPS 2017) say of a weak view."""

    config_class: ClassVar[type[MTWeakStrongConfig]] = MTWeakStrongConfig
    config: MTWeakStrongConfig
    reaches = {"pseudo_labels": Reach.of("A", "unlabeled")}
    passes = Passes(trained=1, forward=0.5)

    def teachers(self) -> dict[str, Callable[[Tensor], Output]]:
        return {"A": self.teach}

    def ssl_terms(self, step: Step) -> dict[str, Term]:
        return {"pseudo_labels": self.pseudo_label_term(step)}

    def why_zero(self, term: str) -> str:
        return self.why_no_pseudo_labels() if term == "pseudo_labels" else super().why_zero(term)
