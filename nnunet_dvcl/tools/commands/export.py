"""``nnunet_dvcl export``"""

import argparse

from nnunet_dvcl.tools.commands.arguments import add_command, add_device, fold


def add(commands) -> None:
    command = add_command(commands, "export", run, "write a trained model as a folder that plain nnU-Net predicts from")
    command.add_argument("folder", metavar="RESULT_FOLDER", help="a trained model's folder, or a fold's")
    command.add_argument(
        "--network", choices=("a", "b", "both"), required=True, help="both: two folds, which nnU-Net averages"
    )
    command.add_argument("--to", metavar="FOLDER", required=True, help="a new or empty folder")
    command.add_argument("-f", metavar="FOLD", type=fold, help="a number, or all (the only one that is trained)")
    command.add_argument("-chk", metavar="FILE", default="checkpoint_final.pth", help="checkpoint (%(default)s)")
    command.add_argument("--no-compare", action="store_true", help="do not predict the validation cases with A and B")
    add_device(command)


def run(args: argparse.Namespace) -> int:
    from nnunet_dvcl.tools.export.model import NETWORKS, export_model

    export_model(args.folder, args.network, args.to, args.f, args.chk, not args.no_compare, args.device)
    folds = " ".join(str(number) for number in range(len(NETWORKS[args.network])))
    print(
        f"Wrote {args.to}. Predict with: nnUNetv2_predict_from_modelfolder -i INPUT -o OUTPUT -m {args.to} -f {folds}"
    )
    return 0
