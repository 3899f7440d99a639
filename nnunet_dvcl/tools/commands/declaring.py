"""Commands and their arguments, as `argparse` wants them: what is declared here adds itself to a parser."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Part = Callable[[Any], Any]
"""Adds an argument to a parser, or a command to what `argparse.ArgumentParser.add_subparsers` returned."""


def argument(*names: str, **options: Any) -> Part:
    """As for `argparse.ArgumentParser.add_argument`."""
    return lambda parser: parser.add_argument(*names, **options)


def either(*arguments: Part) -> Part:
    """Exactly one of these has to be given."""

    def add(parser: argparse.ArgumentParser) -> None:
        group = parser.add_mutually_exclusive_group(required=True)
        for part in arguments:
            part(group)

    return add


def commands(title: str, metavar: str, *members: Part) -> Part:
    """One of these commands has to be given."""

    def add(parser: argparse.ArgumentParser) -> None:
        subparsers = parser.add_subparsers(title=title, metavar=metavar, required=True)
        for member in members:
            member(subparsers)

    return add


def command(name: str, summary: str, *parts: Part, run: Callable[..., int | None] | None = None) -> Part:
    """A command with the same sentence in the list of commands and in its own help.

    Args:
        name: as typed.
        summary: one line, in lower case, without a full stop.
        parts: its arguments in the order of its help, or its own commands.
        run: takes the arguments by name, returns the exit status; None, as the status: 0.
    """

    def add(subparsers) -> None:
        parser = subparsers.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        parser.set_defaults(run=run)
        for part in parts:
            part(parser)

    return add


def runs(name: str, summary: str, *parts: Part) -> Callable[[Callable[..., int | None]], Part]:
    """Decorator: the command runs this function."""
    return lambda run: command(name, summary, *parts, run=run)


def checked(name: str, convert: Callable[[str], Any], holds: Callable[[Any], bool], complaint: str) -> Callable:
    """A ``type`` of `argument`; what is converted, but does not hold, gets the complaint, with ``{}`` for the text."""

    def parse(text: str) -> Any:
        value = convert(text)
        if not holds(value):
            raise argparse.ArgumentTypeError(complaint.format(text))
        return value

    parse.__name__ = name  # `argparse` names what it cannot convert to
    return parse
