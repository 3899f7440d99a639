"""``nnunet_dvcl <command>``"""

import argparse
import sys
from collections.abc import Sequence

from nnunet_dvcl import __version__
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.commands import data, installation, models, training
from nnunet_dvcl.tools.commands.declaring import one_of

_COMMANDS = one_of(
    "commands",
    "COMMAND",
    data.convert,
    data.split,
    data.preprocess,
    data.configure,
    training.memory,
    training.predict_next_stage,
    models.plot,
    models.export,
    training.pilot,
    training.experiment,
    training.selftrain,
    models.inspect,
    installation.demo,
    installation.trainers,
    installation.doctor,
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnunet_dvcl",
        description="Semi-supervised trainers for nnU-Net v2. Train with nnU-Net's own command: "
        "nnUNetv2_train DATASET CONFIGURATION FOLD -tr nnUNetTrainerDVCL",
    )
    parser.add_argument("-V", "--version", action="version", version=f"%(prog)s {__version__}")
    _COMMANDS(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 1 after a ``UserError``, whose message alone is printed."""
    arguments = vars(_parser().parse_args(argv))
    run = arguments.pop("run")
    try:
        return run(**arguments) or 0
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
