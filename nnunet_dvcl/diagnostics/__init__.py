"""What tells whether and why the method works; nothing here trains. Pure functions of rows and terms."""

from nnunet_dvcl.diagnostics.neighborhood_quality import neighborhood_quality
from nnunet_dvcl.diagnostics.term_gradients import relative_gradients

__all__ = ["neighborhood_quality", "relative_gradients"]
