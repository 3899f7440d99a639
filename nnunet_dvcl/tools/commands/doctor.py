"""``nnunet_dvcl doctor``"""

import argparse

from nnunet_dvcl.tools.commands.arguments import add_command


def add(commands) -> None:
    add_command(commands, "doctor", run, "check the installation, nnU-Net's folders and the device")


def run(args: argparse.Namespace) -> int:
    from nnunet_dvcl.tools.doctor import main as doctor

    return doctor()
