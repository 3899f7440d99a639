"""``nnunet_dvcl memory``"""

import argparse

from nnunet_dvcl.tools.commands.arguments import add_command, add_plan_options


def add(commands) -> None:
    command = add_command(commands, "memory", run, "estimate the memory of a training before it begins")
    add_plan_options(command, help="configuration, e.g. 3d_fullres")
    command.add_argument("-tr", metavar="TRAINER", default="nnUNetTrainerDVCL", help="trainer (%(default)s)")


def run(args: argparse.Namespace) -> int:
    from nnunet_dvcl.tools.footprint import print_estimate

    print_estimate(args.d, args.c, args.p, args.tr)
    return 0
