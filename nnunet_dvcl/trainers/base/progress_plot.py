"""progress_ssl.png: what nnU-Net's progress.png does not show."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from nnunet_dvcl.figures import count_epochs, plain_style, save_image, set_log_scale
from nnunet_dvcl.trainers.base.panels import Panel, group, in_words


def plot_progress(logged: dict[str, list[float]], panels: Sequence[Panel], filename: str) -> None:
    """Draws one curve over the epochs for each logged key, grouped into panels.

    Args:
        logged: key -> one value an epoch; nan leaves a gap.
        panels: of the trainer.
        filename: a PNG file, replaced in one step.
    """
    grouped = group(logged, panels)
    with plain_style():
        figure = Figure(figsize=(9, 2.5 * len(grouped)), layout="constrained")
        all_axes = figure.subplots(len(grouped), squeeze=False)[:, 0]
        for axes, (panel, keys) in zip(all_axes, grouped.items(), strict=True):
            for key in keys:
                marker = "." if len(logged[key]) < 30 else ""
                axes.plot(range(len(logged[key])), logged[key], label=in_words(key), marker=marker)
            if panel.log_scale:
                set_log_scale(axes)
            count_epochs(axes)
            axes.set_title(panel.title, loc="left", fontsize="medium")
            axes.set_ylabel(panel.axis)
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
        all_axes[-1].set_xlabel("epoch")
        save_image(figure, filename, dpi=100)
