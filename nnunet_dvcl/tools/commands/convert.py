"""``nnunet_dvcl convert``"""

import argparse

from nnunet_dvcl.tools.commands.arguments import add_command, positive_int
from nnunet_dvcl.tools.convert import RELEASES


def add(commands) -> None:
    command = add_command(commands, "convert", run, "bring one of the paper's data sets into nnU-Net's raw format")
    command.add_argument("dataset", choices=RELEASES, help="one of %(choices)s", metavar="DATASET")
    command.add_argument("source", metavar="SOURCE", help="the folder into which the data set was unpacked")
    command.add_argument("-d", metavar="ID", type=dataset_id, required=True, help="number of the new dataset, 1 to 999")
    command.add_argument("--link", action="store_true", help="link to the images instead of copying them")
    command.add_argument(
        "--max-unlabeled", metavar="N", type=positive_int, help="take the first N scans without labels only (all)"
    )
    command.add_argument("--any-count", action="store_true", help="accept an incomplete data set")
    command.add_argument(
        "--ignore-geometry", action="store_true", help="give a segmentation that lies elsewhere its image's geometry"
    )


def dataset_id(text: str) -> int:
    value = positive_int(text)
    if value > 999:
        raise argparse.ArgumentTypeError(f"{value} is not a number from 1 to 999")
    return value


def run(args: argparse.Namespace) -> int:
    from nnunet_dvcl.tools.convert.raw_dataset import convert_dataset

    convert_dataset(
        args.dataset, args.source, args.d, args.link, args.max_unlabeled, args.any_count, args.ignore_geometry
    )
    return 0
