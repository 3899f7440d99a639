"""What was measured, as JSON, as a table and as pictures."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt

from benchmarks.compare import Comparison
from benchmarks.scaling import Scaling

_MIB = 2**20


def write_report(folder: Path, comparisons: list[Comparison], scalings: list[Scaling], device: torch.device) -> None:
    """``benchmarks.json``, ``benchmarks.md`` and, with scalings, ``scaling.png`` and ``.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = machine_of(device)
    content = {
        "machine": machine,
        "comparisons": [c.as_dict() for c in comparisons],
        "scalings": [s.as_dict() for s in scalings],
    }
    (folder / "benchmarks.json").write_text(json.dumps(content, indent=1))
    text = "\n\n".join(part for part in (_machine_line(machine), _table(comparisons), _slopes(scalings)) if part)
    (folder / "benchmarks.md").write_text(text + "\n")
    if scalings:
        plot_scalings(scalings, folder)
    print(text)


def machine_of(device: torch.device) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _machine_line(machine: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in machine.items())


def _table(comparisons: list[Comparison]) -> str:
    if not comparisons:
        return ""
    lines = ["| ours / theirs | size | ours, s | theirs, s | ratio (quartiles) | memory | target |", "|---" * 7 + "|"]
    for c in comparisons:
        ours, theirs = (sorted(c.seconds[side])[len(c.seconds[side]) // 2] for side in (c.ours, c.theirs))
        low, high = c.spread
        memory = "" if c.memory_ratio is None else f"{c.memory_ratio:.2f} ({c.peak_bytes[c.ours] / _MIB:.0f} MiB)"
        target = "" if c.target is None else f"<= {c.target:.2f}"
        notes = "".join(f"; {key} {value:.3g}" for key, value in c.notes.items())
        ratio = f"{c.ratio:.3f} ({low:.3f} to {high:.3f})"
        lines.append(f"| {c.name}{notes} | {c.size} | {ours:.4g} | {theirs:.4g} | {ratio} | {memory} | {target} |")
    return "\n".join(lines)


def _slopes(scalings: list[Scaling]) -> str:
    if not scalings:
        return ""
    lines = ["| cost | over | from | to | slope of time | slope of memory |", "|---" * 6 + "|"]
    for s in scalings:
        slopes = f"{s.slope(s.seconds):.2f} | {s.slope(s.peak_bytes):.2f}"
        lines.append(f"| {s.name} | {s.dimension} | {s.values[0]} | {s.values[-1]} | {slopes} |")
    return "\n".join(lines)


def plot_scalings(scalings: list[Scaling], folder: Path) -> None:
    matplotlib.use("Agg")
    figure, axes = plt.subplots(2, len(scalings), figsize=(3.2 * len(scalings), 6), squeeze=False)
    for column, s in enumerate(scalings):
        for row, (costs, unit) in enumerate(((s.seconds, "s"), ([b / _MIB for b in s.peak_bytes], "MiB"))):
            axis = axes[row, column]
            axis.loglog(s.values, costs, "o-")
            axis.set_xlabel(s.dimension)
            axis.set_ylabel(f"{'time' if row == 0 else 'peak memory'}, {unit}")
            axis.set_title(f"{s.name}\nslope {s.slope(costs):.2f}", fontsize=9)
            axis.grid(alpha=0.3)
    figure.tight_layout()
    for ending in ("png", "svg"):
        figure.savefig(folder / f"scaling.{ending}", dpi=120)
    plt.close(figure)
