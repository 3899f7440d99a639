"""``nnunet_dvcl <command>``. Each command imports what it needs when it runs, so ``--help`` is instant."""

import argparse
import sys
from collections.abc import Sequence

from nnunet_dvcl import __version__
from nnunet_dvcl.errors import UserError


def _preprocess(args: argparse.Namespace) -> int:
    from nnunetv2.configuration import default_num_processes

    from nnunet_dvcl.data.preprocess import preprocess_unlabeled

    for configuration in args.c:
        folder = preprocess_unlabeled(args.d, configuration, args.p, args.np or default_num_processes)
        print(f"{configuration}: {folder}")
    return 0


def _configure(args: argparse.Namespace) -> int:
    from nnunet_dvcl.configure import configure

    configure(args.d, args.c, args.name, args.p, args.assignments)
    return 0


def _plot_curves(args: argparse.Namespace) -> int:
    from nnunet_dvcl.plots.curves import plot_curves

    plot_curves(args.folders, args.o, args.keys)
    return 0


def _plot_features(args: argparse.Namespace) -> int:
    from nnunet_dvcl.plots.features import plot_features

    plot_features(args.d, args.c, args.f, args.tr, args.o, args.p, args.cases, args.chk, args.device, args.voxels)
    return 0


def _demo(args: argparse.Namespace) -> int:
    from nnunet_dvcl.demo.run import run_demo

    run_demo(args.o, args.quick)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from nnunet_dvcl.doctor import main as doctor

    return doctor()


def _trainers(args: argparse.Namespace) -> int:
    from nnunet_dvcl import trainers

    for name in trainers.__all__:
        if name != "nnUNetTrainerSSL":  # the base of the methods does not train
            print(f"{name}\n    {getattr(trainers, name).__doc__.splitlines()[0]}")
    print("\nEach also trains for a number of epochs that its name gives, for instance nnUNetTrainerDVCL_20epochs.")
    return 0


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def _fold(text: str) -> str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no fold: expected a number or all")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnunet_dvcl",
        description="Semi-supervised trainers for nnU-Net v2. Train with nnU-Net's own command: "
        "nnUNetv2_train DATASET CONFIGURATION FOLD -tr nnUNetTrainerDVCL",
    )
    parser.add_argument("-V", "--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run, summary: str, to=commands) -> argparse.ArgumentParser:
        command = to.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        command.set_defaults(run=run)
        return command

    def add_plan_options(command: argparse.ArgumentParser, **configuration) -> None:
        command.add_argument("-d", metavar="DATASET", required=True, help="dataset name or id")
        command.add_argument("-c", metavar="CONFIGURATION", required=True, **configuration)
        command.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="plans identifier (%(default)s)")

    def add_output_folder(command: argparse.ArgumentParser) -> None:
        command.add_argument("-o", metavar="FOLDER", default="./nnunet_dvcl_plots", help="output folder (%(default)s)")

    command = add("preprocess", _preprocess, "preprocess a dataset's unlabeled scans ahead of training")
    add_plan_options(command, nargs="+", help="one or more configurations, e.g. 2d 3d_fullres")
    command.add_argument("-np", metavar="N", type=_positive_int, help="number of processes (nnU-Net's default)")

    command = add("configure", _configure, "write a configuration of your own into the plans")
    add_plan_options(command, help="configuration to start from, e.g. 3d_fullres")
    command.add_argument("--name", required=True, help="name of the new configuration")
    command.add_argument("assignments", nargs="+", metavar="KEY=VALUE", help="e.g. batch_size=2 ssl.num_epochs=20")

    command = add("plot", None, "draw curves of trainings, or features of voxels")
    pictures = command.add_subparsers(title="pictures", metavar="PICTURE", required=True)

    command = add("curves", _plot_curves, "pseudo Dice and logged values of several trainings", pictures)
    command.add_argument("folders", nargs="+", metavar="RESULT_FOLDER", help="a trained model's folder, or a fold's")
    command.add_argument(
        "--keys", metavar="KEY", nargs="+", default=["*"], help="logged values to draw, e.g. dvcl 'val_*' (all)"
    )
    add_output_folder(command)

    command = add(
        "features", _plot_features, "features of reliable and unreliable voxels, by t-SNE and true organ", pictures
    )
    add_plan_options(command, help="configuration, e.g. 3d_fullres")
    command.add_argument("-f", metavar="FOLD", type=_fold, required=True, help="a number, or all")
    command.add_argument("-tr", metavar="TRAINER", nargs="+", required=True, help="one or more trained trainers")
    command.add_argument(
        "--cases", metavar="CASE", nargs="+", default=[], help="labeled cases (the first 4 of validation)"
    )
    command.add_argument("-chk", metavar="FILE", nargs="+", default=[], help="checkpoints (the best and the last)")
    command.add_argument("-device", choices=("cpu", "cuda", "mps"), help="a GPU where there is one")
    command.add_argument("--voxels", metavar="N", type=_positive_int, default=2000, help="in a panel (%(default)s)")
    add_output_folder(command)

    command = add("demo", _demo, "train and compare on a small body phantom, no data needed")
    command.add_argument("-o", metavar="FOLDER", default="./nnunet_dvcl_demo", help="output folder (%(default)s)")
    command.add_argument("--quick", action="store_true", help="a few iterations only: shows that everything runs")

    add("trainers", _trainers, "list every trainer, what it is and its source")
    add("doctor", _doctor, "check the installation, nnU-Net's folders and the device")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 1 after a ``UserError``, whose message alone is printed."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
