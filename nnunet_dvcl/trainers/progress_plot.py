"""progress_ssl.png: what nnU-Net's progress.png does not show."""

from __future__ import annotations

import os

from matplotlib import style
from matplotlib.figure import Figure

# panel title -> keys; the panel "loss terms" also takes what is in no other
_PANELS = {
    "loss terms": (),
    "weight of the consistency terms": ("rampup",),
    "entropy threshold τ [nats]": ("threshold_A", "threshold_B"),
    "share of unlabeled voxels": ("unreliable_A", "unreliable_B", "agreement"),
    "share of capacity filled": ("bank_fill", "queue_fill"),
    "share of DVCL's neighbors and queries": ("relevant_neighbors", "outlier_queries"),
}


def plot_progress(logged: dict[str, list[float]], filename: str) -> None:
    """Draws one curve over the epochs for each logged key, grouped into panels.

    Args:
        logged: key -> one value an epoch; nan leaves a gap.
        filename: a PNG file, replaced in one step.
    """
    grouped = {key for keys in _PANELS.values() for key in keys}
    panels = {title: [key for key in keys if key in logged] for title, keys in _PANELS.items()}
    panels["loss terms"] = [key for key in logged if key not in grouped]
    panels = {title: keys for title, keys in panels.items() if keys}

    # nnU-Net's own plot leaves its huge fonts behind
    with style.context("default"):
        figure = Figure(figsize=(9, 2.5 * len(panels)), layout="constrained")
        all_axes = figure.subplots(len(panels), squeeze=False)[:, 0]
        for axes, (title, keys) in zip(all_axes, panels.items(), strict=True):
            for key in keys:
                axes.plot(range(len(logged[key])), logged[key], label=key, marker="." if len(logged[key]) < 30 else "")
            axes.set_title(title, loc="left", fontsize="medium")
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
        all_axes[-1].set_xlabel("epoch")
        partial = f"{filename}.partial"
        figure.savefig(partial, format="png", dpi=100)
    os.replace(partial, filename)
