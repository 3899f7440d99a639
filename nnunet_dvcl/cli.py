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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnunet_dvcl",
        description="Semi-supervised trainers for nnU-Net v2. Train with nnU-Net's own command: "
        "nnUNetv2_train DATASET CONFIGURATION FOLD -tr nnUNetTrainerDVCL",
    )
    parser.add_argument("-V", "--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        command.set_defaults(run=run)
        return command

    def add_plan_options(command: argparse.ArgumentParser, **configuration) -> None:
        command.add_argument("-d", metavar="DATASET", required=True, help="dataset name or id")
        command.add_argument("-c", metavar="CONFIGURATION", required=True, **configuration)
        command.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="plans identifier (%(default)s)")

    command = add("preprocess", _preprocess, "preprocess a dataset's unlabeled scans ahead of training")
    add_plan_options(command, nargs="+", help="one or more configurations, e.g. 2d 3d_fullres")
    command.add_argument("-np", metavar="N", type=_positive_int, help="number of processes (nnU-Net's default)")

    command = add("configure", _configure, "write a configuration of your own into the plans")
    add_plan_options(command, help="configuration to start from, e.g. 3d_fullres")
    command.add_argument("--name", required=True, help="name of the new configuration")
    command.add_argument("assignments", nargs="+", metavar="KEY=VALUE", help="e.g. batch_size=2 ssl.num_epochs=20")

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
