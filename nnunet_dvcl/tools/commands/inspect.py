"""``nnunet_dvcl inspect``"""

import argparse

from nnunet_dvcl.tools.commands.arguments import add_command


def add(commands) -> None:
    command = add_command(commands, "inspect", run, "print what a checkpoint holds, without running code from it")
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="a .pth file of nnU-Net or of this package")


def run(args: argparse.Namespace) -> int:
    from nnunet_dvcl.tools.inspection import describe, read_plain

    print(describe(args.checkpoint, read_plain(args.checkpoint)))
    return 0
