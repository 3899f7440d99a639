"""``nnunet_dvcl plot curves`` and ``nnunet_dvcl plot features``"""

import argparse

from nnunet_dvcl.tools.commands.arguments import (
    add_command,
    add_device,
    add_output_folder,
    add_plan_options,
    fold,
    positive_int,
)

_FOLDER = "./nnunet_dvcl_plots"


def add(commands) -> None:
    command = add_command(commands, "plot", None, "draw curves of trainings, or features of voxels")
    pictures = command.add_subparsers(title="pictures", metavar="PICTURE", required=True)
    _add_curves(pictures)
    _add_features(pictures)


def _add_curves(pictures) -> None:
    command = add_command(pictures, "curves", curves, "pseudo Dice and logged values of several trainings")
    command.add_argument("folders", nargs="+", metavar="RESULT_FOLDER", help="a trained model's folder, or a fold's")
    command.add_argument(
        "--keys", metavar="KEY", nargs="+", default=["*"], help="logged values to draw, e.g. dvcl 'val_*' (all)"
    )
    add_output_folder(command, _FOLDER)


def _add_features(pictures) -> None:
    summary = "features of reliable and unreliable voxels, by t-SNE and true organ"
    command = add_command(pictures, "features", features, summary)
    add_plan_options(command, help="configuration, e.g. 3d_fullres")
    command.add_argument("-f", metavar="FOLD", type=fold, required=True, help="a number, or all")
    command.add_argument("-tr", metavar="TRAINER", nargs="+", required=True, help="one or more trained trainers")
    command.add_argument(
        "--cases", metavar="CASE", nargs="+", default=[], help="labeled cases (the first 4 of validation)"
    )
    command.add_argument("-chk", metavar="FILE", nargs="+", default=[], help="checkpoints (the best and the last)")
    add_device(command)
    command.add_argument("--voxels", metavar="N", type=positive_int, default=2000, help="in a panel (%(default)s)")
    add_output_folder(command, _FOLDER)


def curves(args: argparse.Namespace) -> int:
    from nnunet_dvcl.tools.plots.curves import plot_curves

    plot_curves(args.folders, args.o, args.keys)
    return 0


def features(args: argparse.Namespace) -> int:
    from nnunet_dvcl.tools.plots.features import plot_features

    plot_features(args.d, args.c, args.f, args.tr, args.o, args.p, args.cases, args.chk, args.device, args.voxels)
    return 0
