"""Commands and their arguments, as `argparse` wants them: what is declared here adds itself to a parser."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Part = Callable[[Any], Any]
"""Adds arguments to a parser, or a command to what `argparse.ArgumentParser.add_subparsers` returned."""


def argument(*names: str, **options: Any) -> Part:
    """As for `argparse.ArgumentParser.add_argument`."""
    return lambda parser: parser.add_argument(*names, **options)


def one_of(title: str, metavar: str, *commands: Part) -> Part:
    """One of these commands has to be given."""

    def add(parser: argparse.ArgumentParser) -> None:
        subparsers = parser.add_subparsers(title=title, metavar=metavar, required=True)
        for command in commands:
            command(subparsers)

    return add


def command(*parts: Part) -> Callable[[Callable[..., int | None]], Part]:
    """Decorator: the function becomes the command of its name. Its docstring is one sentence: what the command does.

    The function takes the arguments by name and returns the exit status; None is 0. `parts` are the arguments in the
    order of the help, or `one_of` its own commands, which run instead.
    """

    def declare(run: Callable[..., int | None]) -> Part:
        name, sentence = run.__name__.replace("_", "-"), run.__doc__

        def add(subparsers) -> None:
            summary = sentence[0].lower() + sentence[1:].removesuffix(".")
            parser = subparsers.add_parser(name, help=summary, description=sentence)
            parser.set_defaults(run=run)
            for part in parts:
                part(parser)

        return add

    return declare


def checked(name: str, convert: Callable[[str], Any], holds: Callable[[Any], bool], complaint: str) -> Callable:
    """A ``type`` of `argument`; what is converted, but does not hold, gets the complaint, with ``{}`` for the text."""

    def parse(text: str) -> Any:
        value = convert(text)
        if not holds(value):
            raise argparse.ArgumentTypeError(complaint.format(text))
        return value

    parse.__name__ = name  # `argparse` names what it cannot convert to
    return parse
