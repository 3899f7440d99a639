"""``nnunet_dvcl predict-next-stage``"""

import argparse

from nnunet_dvcl.tools.commands.arguments import add_command, add_dataset, add_device, add_plans, fold


def add(commands) -> None:
    summary = "predict unlabeled scans for the next stage of a cascade"
    command = add_command(commands, "predict-next-stage", run, summary)
    add_dataset(command)
    command.add_argument("-c", metavar="CONFIGURATION", default="3d_lowres", help="the trained stage (%(default)s)")
    command.add_argument("-f", metavar="FOLD", type=fold, required=True, help="a number, or all")
    command.add_argument("-tr", metavar="TRAINER", required=True, help="trained trainer")
    add_plans(command)
    command.add_argument("-chk", metavar="FILE", default="checkpoint_final.pth", help="checkpoint (%(default)s)")
    add_device(command)


def run(args: argparse.Namespace) -> int:
    from nnunet_dvcl.tools.next_stage import predict_next_stage

    for folder in predict_next_stage(args.d, args.c, args.f, args.tr, args.p, args.chk, args.device):
        print(folder)
    return 0
