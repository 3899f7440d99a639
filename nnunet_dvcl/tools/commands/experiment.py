"""``nnunet_dvcl experiment run``, ``status``, ``commands`` and ``report``"""

import argparse

from nnunet_dvcl.tools.commands.arguments import add_command


def add(commands) -> None:
    command = add_command(commands, "experiment", None, "train, predict and compare what an experiment file lists")
    verbs = command.add_subparsers(title="verbs", metavar="VERB", required=True)

    verb = _add_verb(verbs, "run", run, "do what is not finished yet")
    verb.add_argument("--runs", metavar="RUN", nargs="+", default=[], help="only these (all)")
    verb.add_argument("--devices", metavar="DEVICE", nargs="+", default=[], help="instead of the file's, e.g. cuda:0")
    verb.add_argument("--prepare", action="store_true", help="only preprocess, and write configurations and splits")

    _add_verb(verbs, "status", status, "list the runs and how far they are")

    verb = _add_verb(verbs, "commands", print_commands, "print a command line for each run that is not finished")
    verb.add_argument("--nnunet", action="store_true", help="nnU-Net's own command lines")

    verb = _add_verb(verbs, "report", report, "write tables and a picture of the runs that are finished")
    verb.add_argument("-o", metavar="FOLDER", help="output folder (NAME_report beside the file)")


def _add_verb(verbs, name: str, run, summary: str) -> argparse.ArgumentParser:
    verb = add_command(verbs, name, run, summary)
    verb.add_argument("file", metavar="FILE.yaml", help="the experiment file")
    return verb


def _place(args: argparse.Namespace):
    from nnunet_dvcl.tools.experiment.experiment_file import read_experiment
    from nnunet_dvcl.tools.experiment.runs import Workplace

    return Workplace(read_experiment(args.file))


def run(args: argparse.Namespace) -> int:
    from nnunet_dvcl.tools.experiment.experiment_file import check_devices
    from nnunet_dvcl.tools.experiment.runner import run_experiment

    try:
        return run_experiment(_place(args), args.runs, check_devices(args.devices), args.prepare)
    except KeyboardInterrupt:
        print("\nStopped. Called again, this command goes on.")
        return 130


def status(args: argparse.Namespace) -> int:
    from nnunet_dvcl.tools.experiment.listing import print_status

    print_status(_place(args))
    return 0


def print_commands(args: argparse.Namespace) -> int:
    from nnunet_dvcl.tools.experiment.listing import command_lines

    print(*command_lines(_place(args), args.nnunet), sep="\n")
    return 0


def report(args: argparse.Namespace) -> int:
    from pathlib import Path

    from nnunet_dvcl.tools.experiment.report import write_report

    place = _place(args)
    experiment = place.experiment
    file = write_report(place, Path(args.o or experiment.file.with_name(f"{experiment.name}_report")))
    print(file.read_text(encoding="utf-8"))
    print(f"Wrote {file} and, beside it, table.csv, cases.csv, tables.tex, dice.png and dice.svg")
    return 0
