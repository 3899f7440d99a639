"""Trainings: ``nnunet_dvcl memory``, ``selftrain``, ``predict-next-stage``, ``experiment`` and ``pilot``."""

from pathlib import Path

from nnunet_dvcl.tools.commands.declaring import argument, checked, command, one_of
from nnunet_dvcl.tools.commands.shared import CHECKPOINT, DATASET, DEVICE, FOLD, PLANS, plan_options, positive_int

_fold = checked("_fold", str, str.isdecimal, "{} is no fold: expected a number")
_hours = checked("_hours", float, lambda value: 0 < value < 1000, "{} is not a number of hours")
_probability = checked("_probability", float, lambda value: 0.5 <= value < 1, "{} is not in [0.5, 1)")


@command(
    *plan_options(),
    argument("-tr", metavar="TRAINER", default="nnUNetTrainerDVCL", help="trainer (%(default)s)"),
)
def memory(d: str, c: str, p: str, tr: str) -> None:
    """Estimate the memory of a training before it begins."""
    from nnunet_dvcl.tools.footprint import print_estimate

    print_estimate(d, c, p, tr)


@command(
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
    """Train, predict the unlabeled cases, train again on both."""
    from nnunet_dvcl.tools.selftrain import selftrain

    print(f"Trained: {selftrain(d, c, int(f), trainer=tr, plans=p, first_id=to, **options)}")


@command(
    DATASET,
    argument("-c", metavar="CONFIGURATION", default="3d_lowres", help="the trained stage (%(default)s)"),
    FOLD,
    argument("-tr", metavar="TRAINER", required=True, help="trained trainer"),
    PLANS,
    CHECKPOINT,
    DEVICE,
)
def predict_next_stage(d: str, c: str, f: str, tr: str, p: str, chk: str, device: str | None) -> None:
    """Predict unlabeled scans for the next stage of a cascade."""
    from nnunet_dvcl.tools.next_stage import predict_next_stage

    for folder in predict_next_stage(d, c, f, tr, p, chk, device):
        print(folder)


_FILE = argument("file", metavar="FILE.yaml", help="the experiment file")


def _place(file: str):
    from nnunet_dvcl.tools.experiment.experiment_file import read_experiment
    from nnunet_dvcl.tools.experiment.runs import Workplace

    return Workplace(read_experiment(file))


@command(
    _FILE,
    argument("--runs", metavar="RUN", nargs="+", default=[], help="only these (all)"),
    argument("--devices", metavar="DEVICE", nargs="+", default=[], help="instead of the file's, e.g. cuda:0"),
    argument("--prepare", action="store_true", help="only preprocess, and write configurations and splits"),
)
def run(file: str, runs: list[str], devices: list[str], prepare: bool) -> int:
    """Do what is not finished yet."""
    from nnunet_dvcl.tools.experiment.runner import run_experiment

    try:
        return run_experiment(_place(file), runs, devices, prepare)
    except KeyboardInterrupt:
        print("\nStopped. Called again, this command goes on.")
        return 130


@command(_FILE)
def status(file: str) -> None:
    """List the runs and how far they are."""
    from nnunet_dvcl.tools.experiment.listing import print_status

    print_status(_place(file))


@command(_FILE, argument("--nnunet", action="store_true", help="nnU-Net's own command lines"))
def commands(file: str, nnunet: bool) -> None:
    """Print a command line for each run that is not finished."""
    from nnunet_dvcl.tools.experiment.listing import command_lines

    print(*command_lines(_place(file), nnunet), sep="\n")


@command(_FILE, argument("-o", metavar="FOLDER", help="output folder (NAME_report beside the file)"))
def report(file: str, o: str | None) -> None:
    """Write tables and a picture of the runs that are finished."""
    from nnunet_dvcl.tools.experiment.report import write_report

    place = _place(file)
    experiment = place.experiment
    report = write_report(place, Path(o or experiment.file.with_name(f"{experiment.name}_report")))
    print(report.read_text(encoding="utf-8"))
    print(f"Wrote {report} and, beside it, table.csv, cases.csv, tables.tex, dice.png and dice.svg")


@command(one_of("verbs", "VERB", run, status, commands, report))
def experiment() -> None:
    """Train, predict and compare what an experiment file lists."""


@command(
    *plan_options(),
    argument("--hours", metavar="H", type=_hours, default=4.0, help="that it may take (%(default)s)"),
    argument(
        "--trainers", metavar="TRAINER", nargs="+", default=["nnUNetTrainerDVCL"], help="to try (nnUNetTrainerDVCL)"
    ),
    argument("--devices", metavar="DEVICE", nargs="+", default=[], help="cpu, cuda:0, ... (a GPU where there is one)"),
    argument("--group-by", metavar="REGEX", help="finds a case's patient in its identifier"),
    argument("-o", metavar="FOLDER", help="of the pilot (in nnUNet_results)"),
)
def pilot(d: str, c: str, p: str, group_by: str | None, o: str | None, **options) -> int:
    """Try on your own data whether unlabeled scans help."""
    from nnunet_dvcl.tools.pilot.run import run_pilot

    try:
        return run_pilot(d, c, p, group_pattern=group_by, folder=o, **options)
    except KeyboardInterrupt:
        print("\nStopped. Typed again, the same command goes on.")
        return 130
