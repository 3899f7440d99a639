"""Arguments that several commands share."""

import argparse
from collections.abc import Callable


def add_command(commands, name: str, run: Callable[[argparse.Namespace], int] | None, summary: str):
    """A sub-command with the same sentence in the list and in its own help.

    Args:
        commands: what `argparse.ArgumentParser.add_subparsers` returned.
        name: as typed.
        run: takes the parsed arguments, returns the exit status; None: the command has sub-commands.
        summary: one line, in lower case, without a full stop.

    Returns:
        The command's parser.
    """
    command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    command.set_defaults(run=run)
    return command


def add_dataset(command: argparse.ArgumentParser) -> None:
    command.add_argument("-d", metavar="DATASET", required=True, help="dataset name or id")


def add_plans(command: argparse.ArgumentParser) -> None:
    command.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="plans identifier (%(default)s)")


def add_plan_options(command: argparse.ArgumentParser, **configuration) -> None:
    """``-d``, ``-c`` and ``-p``; what is given is for ``-c``."""
    add_dataset(command)
    command.add_argument("-c", metavar="CONFIGURATION", required=True, **configuration)
    add_plans(command)


def add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("-device", choices=("cpu", "cuda", "mps"), help="a GPU where there is one")


def add_output_folder(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument("-o", metavar="FOLDER", default=default, help="output folder (%(default)s)")


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def fold(text: str) -> str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no fold: expected a number or all")
    return text
