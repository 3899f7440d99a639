"""``nnunet_dvcl selftrain``"""

import argparse

from nnunet_dvcl.tools.commands.arguments import add_command, add_plan_options, positive_int


def add(commands) -> None:
    command = add_command(commands, "selftrain", run, "train, predict the unlabeled cases, train again on both")
    add_plan_options(command, help="configuration, e.g. 3d_fullres")
    command.add_argument("-f", metavar="FOLD", type=_fold, required=True, help="a number")
    command.add_argument("-tr", metavar="TRAINER", default="nnUNetTrainer", help="a supervised trainer (%(default)s)")
    command.add_argument("--rounds", metavar="N", type=positive_int, default=1, help="of prediction (%(default)s)")
    command.add_argument(
        "--ignore-uncertain", metavar="P", type=_probability, help="ignore voxels of less probability, e.g. 0.9 (none)"
    )
    command.add_argument("--to", metavar="ID", type=positive_int, help="number of the new data set (the next free one)")
    command.add_argument("-device", choices=("cpu", "cuda", "mps"), default="cuda", help="(%(default)s)")


def _fold(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no fold: expected a number")
    return int(text)


def _probability(text: str) -> float:
    value = float(text)
    if not 0.5 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0.5, 1)")
    return value


def run(args: argparse.Namespace) -> int:
    from nnunet_dvcl.tools.selftrain import selftrain

    folder = selftrain(
        args.d,
        args.c,
        args.f,
        trainer=args.tr,
        plans=args.p,
        rounds=args.rounds,
        ignore_uncertain=args.ignore_uncertain,
        first_id=args.to,
        device=args.device,
    )
    print(f"Trained: {folder}")
    return 0
