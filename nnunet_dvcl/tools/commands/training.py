"""Trainings: ``nnunet_dvcl memory``, ``selftrain``, ``demo`` and ``experiment``."""

from pathlib import Path

from nnunet_dvcl.tools.commands.arguments import output_folder, plan_options, positive_int
from nnunet_dvcl.tools.commands.declaring import argument, checked, command, commands, runs

_fold = checked("_fold", str, str.isdecimal, "{} is no fold: expected a number")
_probability = checked("_probability", float, lambda value: 0.5 <= value < 1, "{} is not in [0.5, 1)")


@runs(
    "memory",
    "estimate the memory of a training before it begins",
    *plan_options(),
    argument("-tr", metavar="TRAINER", default="nnUNetTrainerDVCL", help="trainer (%(default)s)"),
)
def footprint(d: str, c: str, p: str, tr: str) -> None:
    from nnunet_dvcl.tools.footprint import print_estimate

    print_estimate(d, c, p, tr)


@runs(
    "selftrain",
    "train, predict the unlabeled cases, train again on both",
    *plan_options(),
    argument("-f", metavar="FOLD", type=_fold, required=True, help="a number"),
    argument("-tr", metavar="TRAINER", default="nnUNetTrainer", help="a supervised trainer (%(default)s)"),
    argument("--rounds", metavar="N", type=positive_int, default=1, help="of prediction (%(default)s)"),
    argument(
        "--ignore-uncertain", metavar="P", type=_probability, help="ignore voxels of less probability, e.g. 0.9 (none)"
    ),
    argument("--to", metavar="ID", type=positive_int, help="number of the new data set (the next free one)"),
    argument("-device", choices=("cpu", "cuda", "mps"), default="cuda", help="(%(default)s)"),
)
def selftrain(d: str, c: str, p: str, f: str, tr: str, to: int | None, **options) -> None:
    from nnunet_dvcl.tools.selftrain import selftrain

    print(f"Trained: {selftrain(d, c, int(f), trainer=tr, plans=p, first_id=to, **options)}")


@runs(
    "demo",
    "train and compare on a small body phantom, no data needed",
    output_folder("./nnunet_dvcl_demo"),
    argument("--quick", action="store_true", help="a few iterations only: shows that everything runs"),
)
def demo(o: str, quick: bool) -> None:
    from nnunet_dvcl.tools.demo.run import run_demo

    run_demo(o, quick)


_FILE = argument("file", metavar="FILE.yaml", help="the experiment file")


def _place(file: str):
    from nnunet_dvcl.tools.experiment.experiment_file import read_experiment
    from nnunet_dvcl.tools.experiment.runs import Workplace

    return Workplace(read_experiment(file))


@runs(
    "run",
    "do what is not finished yet",
    _FILE,
    argument("--runs", metavar="RUN", nargs="+", default=[], help="only these (all)"),
    argument("--devices", metavar="DEVICE", nargs="+", default=[], help="instead of the file's, e.g. cuda:0"),
    argument("--prepare", action="store_true", help="only preprocess, and write configurations and splits"),
)
def _run(file: str, runs: list[str], devices: list[str], prepare: bool) -> int:
    from nnunet_dvcl.tools.experiment.experiment_file import check_devices
    from nnunet_dvcl.tools.experiment.runner import run_experiment

    try:
        return run_experiment(_place(file), runs, check_devices(devices), prepare)
    except KeyboardInterrupt:
        print("\nStopped. Called again, this command goes on.")
        return 130


@runs("status", "list the runs and how far they are", _FILE)
def _status(file: str) -> None:
    from nnunet_dvcl.tools.experiment.listing import print_status

    print_status(_place(file))


@runs(
    "commands",
    "print a command line for each run that is not finished",
    _FILE,
    argument("--nnunet", action="store_true", help="nnU-Net's own command lines"),
)
def _commands(file: str, nnunet: bool) -> None:
    from nnunet_dvcl.tools.experiment.listing import command_lines

    print(*command_lines(_place(file), nnunet), sep="\n")


@runs(
    "report",
    "write tables and a picture of the runs that are finished",
    _FILE,
    argument("-o", metavar="FOLDER", help="output folder (NAME_report beside the file)"),
)
def _report(file: str, o: str | None) -> None:
    from nnunet_dvcl.tools.experiment.report import write_report

    place = _place(file)
    experiment = place.experiment
    report = write_report(place, Path(o or experiment.file.with_name(f"{experiment.name}_report")))
    print(report.read_text(encoding="utf-8"))
    print(f"Wrote {report} and, beside it, table.csv, cases.csv, tables.tex, dice.png and dice.svg")


experiment = command(
    "experiment",
    "train, predict and compare what an experiment file lists",
    commands("verbs", "VERB", _run, _status, _commands, _report),
)
