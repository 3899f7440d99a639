"""``python -m benchmarks``"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import epochs, parts, scaling, start_up, steps
from benchmarks.compare import Comparison
from benchmarks.report import write_report
from benchmarks.sizes import SIZES, Size


def benchmarks_of(size: Size, device: torch.device, repeats: int | None) -> dict[str, Callable[[], Comparison]]:
    """Every comparison by name."""
    few = repeats or size.repeats
    many = repeats or 5 * size.repeats
    return {
        "dvcl": lambda: steps.dvcl_over_cps(size, device, few),
        "epoch": lambda: epochs.dvcl_epoch_over_cps(size, device, few),
        "cps": lambda: steps.cps_over_twice_nnunet(size, device, few),
        "weak-strong": lambda: steps.weak_strong_over_same_view(size, device, few),
        "sequential": lambda: steps.sequential_over_joint(size, device, few),
        "dense-head": lambda: steps.contrast_over_dense_head(size, device, few),
        "selection": lambda: parts.selection_over_argmax(size, device, many),
        "loaders": lambda: start_up.loaders_over_nnunet(size, few),
        "start-up": lambda: start_up.start_up_over_nnunet(size, min(few, 5)),
        "start-up-found": lambda: start_up.start_up_over_nnunet(size, min(few, 5), "nnUNetTrainer_10epochs"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "hippocampus"])
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="some of them: dvcl cps epoch search scaling methods ..."
    )
    parser.add_argument("--repeats", type=int, help="of each side (by size)")
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU (%(default)s)")
    parser.add_argument("-o", metavar="FOLDER", type=Path, default=Path("nnunet_dvcl_benchmarks"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)

    wanted: list[tuple[str, Callable[[], Comparison]]] = [
        (f"{name} {size}", call)
        for size in args.sizes
        for name, call in benchmarks_of(SIZES[size], device, args.repeats).items()
        if not args.only or name in args.only
    ]
    if not args.only or "search" in args.only:
        wanted.append(("search", lambda: parts.search_over_faiss(1024, 8192, args.repeats or 20)))
    if args.only and "methods" in args.only:  # by name alone, since it takes minutes
        size = SIZES[args.sizes[0]]
        wanted += [
            (name, partial(steps.method_over_supervised, name, size, device, args.repeats or size.repeats))
            for name in steps.METHODS
        ]
    comparisons = []
    for name, call in (bar := tqdm(wanted)):
        bar.set_description(name)
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net's
            comparisons.append(call())
    scalings = []
    if not args.only or "scaling" in args.only:
        scalings = scaling.scalings(device, args.repeats or 5)
    write_report(args.o, comparisons, scalings, device)


if __name__ == "__main__":
    main()
