"""``nnunet_dvcl trainers``"""

import argparse

from nnunet_dvcl.tools.commands.arguments import add_command


def add(commands) -> None:
    add_command(commands, "trainers", run, "list every trainer, what it is and its source")


def run(args: argparse.Namespace) -> int:
    from nnunet_dvcl import trainers

    for name in trainers.__all__:
        if name != "nnUNetTrainerSSL":  # the base of the methods does not train
            print(f"{name}\n    {getattr(trainers, name).__doc__.splitlines()[0]}")
    print("\nEach also trains for a number of epochs that its name gives, for instance nnUNetTrainerDVCL_20epochs.")
    return 0
