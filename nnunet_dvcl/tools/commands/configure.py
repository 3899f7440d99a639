"""``nnunet_dvcl configure``"""

import argparse

from nnunet_dvcl.tools.commands.arguments import add_command, add_plan_options


def add(commands) -> None:
    command = add_command(commands, "configure", run, "write a configuration of your own into the plans")
    add_plan_options(command, help="configuration to start from, e.g. 3d_fullres")
    command.add_argument("--name", required=True, help="name of the new configuration")
    command.add_argument("--preset", choices=("paper",), help="the network and patches of the paper's protocol")
    command.add_argument("assignments", nargs="*", metavar="KEY=VALUE", help="e.g. batch_size=2 ssl.num_epochs=20")


def run(args: argparse.Namespace) -> int:
    from nnunet_dvcl.presets import assignments_of
    from nnunet_dvcl.tools.configure import configure

    # what is given counts after the preset, and so instead of it
    preset = assignments_of(args.preset) if args.preset else []
    configure(args.d, args.c, args.name, args.p, [*preset, *args.assignments])
    return 0
