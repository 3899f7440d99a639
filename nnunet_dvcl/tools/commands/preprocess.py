"""``nnunet_dvcl preprocess``"""

import argparse

from nnunet_dvcl.tools.commands.arguments import add_command, add_plan_options, positive_int


def add(commands) -> None:
    command = add_command(commands, "preprocess", run, "preprocess a dataset's unlabeled scans ahead of training")
    add_plan_options(command, nargs="+", help="one or more configurations, e.g. 2d 3d_fullres")
    command.add_argument("-np", metavar="N", type=positive_int, help="number of processes (nnU-Net's default)")


def run(args: argparse.Namespace) -> int:
    from nnunetv2.configuration import default_num_processes

    from nnunet_dvcl.data.preprocess import preprocess_unlabeled

    for configuration in args.c:
        folder = preprocess_unlabeled(args.d, configuration, args.p, args.np or default_num_processes)
        print(f"{configuration}: {folder}")
    return 0
