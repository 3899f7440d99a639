"""``nnunet_dvcl demo``"""

import argparse

from nnunet_dvcl.tools.commands.arguments import add_command, add_output_folder


def add(commands) -> None:
    command = add_command(commands, "demo", run, "train and compare on a small body phantom, no data needed")
    add_output_folder(command, "./nnunet_dvcl_demo")
    command.add_argument("--quick", action="store_true", help="a few iterations only: shows that everything runs")


def run(args: argparse.Namespace) -> int:
    from nnunet_dvcl.tools.demo.run import run_demo

    run_demo(args.o, args.quick)
    return 0
