"""``nnunet_dvcl <command>``"""

import argparse
import sys
from collections.abc import Sequence

from nnunet_dvcl import __version__
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.commands import (
    configure,
    convert,
    demo,
    doctor,
    experiment,
    export,
    footprint,
    inspect,
    plot,
    predict_next_stage,
    preprocess,
    selftrain,
    split,
    trainers,
)

# in the order of ``nnunet_dvcl --help``
COMMANDS = (
    convert,
    split,
    preprocess,
    configure,
    footprint,
    predict_next_stage,
    plot,
    export,
    experiment,
    selftrain,
    inspect,
    demo,
    trainers,
    doctor,
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnunet_dvcl",
        description="Semi-supervised trainers for nnU-Net v2. Train with nnU-Net's own command: "
        "nnUNetv2_train DATASET CONFIGURATION FOLD -tr nnUNetTrainerDVCL",
    )
    parser.add_argument("-V", "--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 1 after a ``UserError``, whose message alone is printed."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
