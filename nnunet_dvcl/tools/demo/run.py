"""The demo: nnU-Net's own training and DVCL on the phantom's few labels, command by command as a user types them."""

import json
import os
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.demo import report
from nnunet_dvcl.tools.demo.phantom import ORGANS, write_dataset
from nnunet_dvcl.tools.device import find_device
from nnunet_dvcl.tools.running.command import Command, environment
from nnunet_dvcl.tools.running.process import call

DATASET_ID, DATASET_NAME = 900, "Dataset900_Phantom"
FOLD = "all"  # two labeled scans are too few to validate on


class Training(NamedTuple):
    """A column of the table."""

    title: str
    trainer: str  # nnU-Net's -tr
    configuration: str

    @property
    def name(self) -> str:
        """Of its files."""
        return re.sub(r"\W+", "_", self.title)

    def epoch_time(self, results: Path) -> float:
        """Mean seconds of an epoch, from the log files of nnU-Net's training."""
        folder = results / DATASET_NAME / f"{self.trainer}__nnUNetPlans__{self.configuration}" / f"fold_{FOLD}"
        logs = "".join(log.read_text() for log in folder.glob("training_log_*.txt"))
        times = [float(seconds) for seconds in re.findall(r"Epoch time: ([\d.]+) s", logs)]
        return sum(times) / len(times)


SUPERVISED = Training("nnU-Net", "nnUNetTrainerSupervised", "2d_demo")
DVCL = Training("DVCL", "nnUNetTrainerDVCL", "2d_demo")
SAME_TIME = Training("nnU-Net, same time", "nnUNetTrainerSupervised", "2d_demo_same_time")
TRAININGS = (SUPERVISED, DVCL, SAME_TIME)


@dataclass(frozen=True)
class Size:
    """How much the demo does. Whole slices: a 2d network learns more in minutes than a 3d one.

    shape: of a scan in voxels [z, y, x]; patch: [y, x].
    """

    num_labeled: int = 2
    num_unlabeled: int = 40
    num_test: int = 8
    shape: tuple[int, int, int] = (32, 40, 48)
    patch: tuple[int, int] = (40, 48)
    batch_size: int = 6
    features: tuple[int, int, int, int] = (8, 16, 32, 64)
    num_epochs: int = 10
    num_iterations: int = 80
    num_val_iterations: int = 2


QUICK = Size(
    num_unlabeled=2,
    num_test=2,
    shape=(16, 24, 24),
    patch=(24, 24),
    batch_size=2,
    features=(4, 4, 8, 8),
    num_epochs=1,
    num_iterations=2,
)


class Runner:
    """Runs the demo's steps; what an earlier run in the same folder has finished is skipped.

    Each command's output goes to ``logs/<step>.log``; an empty ``logs/<step>.done`` says that the step is finished.
    """

    def __init__(self, folder: Path):
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.folders = {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}

    def step(self, name: str, title: str, work: Callable[[], object]) -> None:
        done = self.logs / f"{name}.done"
        print(f"\n== {title}", flush=True)
        if done.exists():
            print("   finished before, skipped")
            return
        start = time.perf_counter()
        work()
        done.touch()
        print(f"   {time.perf_counter() - start:.0f} s", flush=True)

    def command(self, name: str, title: str, *words: object, **variables: str) -> None:
        """One step that is one command line; `variables`: environment variables for it alone."""
        command, log = Command(*words), self.logs / f"{name}.log"

        def work() -> None:
            print(f"$ {command}", flush=True)
            with open(log, "w", buffering=1) as file:
                call(command, environment({**_VARIABLES, **self.folders, **variables}), file, show=_show_pace)

        self.step(name, title, work)


_VARIABLES = {
    "nnUNet_compile": "f",  # compiling takes longer than the demo
    "nnUNet_def_n_proc": "1",  # each worker imports torch, which costs more than its work here
    "nnUNet_n_proc_DA": "1",
    "OMP_NUM_THREADS": "1",  # of workers
    "OMP_WAIT_POLICY": "passive",  # threads that spin make a busy machine several times slower
}


def _show_pace(line: str) -> None:
    """Each epoch that begins, and how long a training takes in all, which it tells after a few steps."""
    if said := re.search(r": (Epoch \d+|.*\babout .* in all) *$", line):
        print(f"   {said[1]}", flush=True)


_OUTLINE = """\
What follows takes less than 15 minutes on two cores: a phantom and nnU-Net's plan of it; then three trainings, of
nnU-Net, of DVCL for as many iterations (about five times as long), and of nnU-Net for as long as DVCL took. After each
the test scans are predicted and compared with the truth. Each part says how long it took; a training says soon after
its start how long it will.
"""


def run_demo(output_folder: str, quick: bool = False) -> None:
    """Makes a phantom data set, trains on it with nnU-Net and with DVCL, predicts, compares.

    nnU-Net trains twice: for as many iterations as DVCL, and for as long.

    Everything is written into `output_folder`, a new folder, or that of an earlier run, which goes on where it was
    stopped. `quick` is a few iterations of DVCL alone on tiny scans, which teach the networks nothing.

    Raises:
        UserError: a command failed (shows its last lines), or the folder holds something else.
    """
    start = time.perf_counter()
    size, trainings = (QUICK, (DVCL,)) if quick else (Size(), TRAININGS)
    folder = Path(output_folder).absolute()
    _claim(folder, size)
    runner = Runner(folder)
    if not quick:
        print(_OUTLINE)
    print("To type these commands yourself, first set:")
    print(*(f"export {name}={shlex.quote(value)}" for name, value in runner.folders.items()), sep="\n")
    _prepare(runner, size)
    for training in trainings:
        if training is SAME_TIME:
            _configure_same_time(runner, size)
        _train_and_predict(runner, folder, training)
    _compare(folder, trainings)
    print(f"\nWhole demo: {time.perf_counter() - start:.0f} s")


def _claim(folder: Path, size: Size) -> None:
    """The folder is ours and of this size, or empty; a half-finished demo of another size would be mixed up."""
    settings = folder / "demo.json"
    wanted = json.dumps(asdict(size))
    if settings.exists():
        if settings.read_text() != wanted:
            raise UserError(f"{folder} holds a demo of another size: delete it, or give another folder with -o.")
        return
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is neither empty nor an earlier demo: give another folder with -o.")
    folder.mkdir(parents=True, exist_ok=True)
    settings.write_text(wanted)


def _prepare(runner: Runner, size: Size) -> None:
    numbers = size.num_labeled, size.num_unlabeled, size.num_test
    runner.step(
        "phantom",
        "Phantom: {} labeled, {} unlabeled, {} test scans, {} organs".format(*numbers, len(ORGANS)),
        lambda: write_dataset(runner.folders["nnUNet_raw"], DATASET_NAME, *numbers, shape=size.shape),
    )
    plan = ("nnUNetv2_plan_and_preprocess", "-d", DATASET_ID, "-c", "2d")
    runner.command("plan", "Plan and preprocess", *plan, "-npfp", 1, "-np", 1, "--verify_dataset_integrity")
    configure = ("nnunet_dvcl", "configure", "-d", DATASET_ID, "-c", "2d", "--name", SUPERVISED.configuration)
    runner.command("configure", "A small network and a short training", *configure, *_assignments(size))


def _assignments(size: Size) -> list[str]:
    """What makes nnU-Net's plan small, and the memory of DVCL in proportion to the patches."""
    values = {
        "batch_size": size.batch_size,
        "patch_size": size.patch,
        "architecture.arch_kwargs.n_stages": 4,
        "architecture.arch_kwargs.features_per_stage": size.features,
        "architecture.arch_kwargs.kernel_sizes": [[3, 3]] * 4,
        "architecture.arch_kwargs.strides": [[1, 1]] + [[2, 2]] * 3,
        "architecture.arch_kwargs.n_conv_per_stage": [2, 2, 2, 2],
        "architecture.arch_kwargs.n_conv_per_stage_decoder": [1, 1, 1],
        "ssl.optimizer": "adamw",
        "ssl.initial_lr": 0.005,
        "ssl.num_epochs": size.num_epochs,
        "ssl.num_iterations_per_epoch": size.num_iterations,
        "ssl.num_val_iterations_per_epoch": size.num_val_iterations,
        "ssl.seed": 0,
        "ssl.num_queries": 256,
        "ssl.queue_capacity": 4096,
    }
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return [f"{key}={text.replace(' ', '')}" for key, text in texts.items()]


def _configure_same_time(runner: Runner, size: Size) -> None:
    """As many epochs of nnU-Net as take the time of DVCL's."""
    results = Path(runner.folders["nnUNet_results"])
    epochs = round(size.num_epochs * DVCL.epoch_time(results) / SUPERVISED.epoch_time(results))
    configure = ("nnunet_dvcl", "configure", "-d", DATASET_ID, "-c", SUPERVISED.configuration)
    words = (*configure, "--name", SAME_TIME.configuration, f"ssl.num_epochs={max(epochs, 1)}")
    runner.command("configure_same_time", "A training of nnU-Net that takes as long as DVCL's", *words)


def _train_and_predict(runner: Runner, folder: Path, training: Training) -> None:
    title, name, device = training.title, training.name, find_device(None)
    train = ("nnUNetv2_train", DATASET_ID, training.configuration, FOLD, "-tr", training.trainer, "-device", device)
    # no worker processes: on two cores they would only take time from the training
    threads = {"nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": str(os.cpu_count())}
    runner.command(f"train_{name}", f"Train: {title}", *train, **threads)

    raw, predictions = Path(runner.folders["nnUNet_raw"]) / DATASET_NAME, folder / "predictions" / name
    model = ("-d", DATASET_ID, "-c", training.configuration, "-f", FOLD, "-tr", training.trainer)
    options = ("-device", device, "--disable_tta", "-npp", 0, "-nps", 0)
    predict = ("nnUNetv2_predict", "-i", raw / "imagesTs", "-o", predictions, *model, *options)
    runner.command(f"predict_{name}", f"Predict the test scans: {title}", *predict)

    files = ("-djfile", predictions / "dataset.json", "-pfile", predictions / "plans.json", "-np", 1)
    evaluate = ("nnUNetv2_evaluate_folder", raw / "labelsTs", predictions, *files)
    runner.command(f"evaluate_{name}", f"Compare with the truth: {title}", *evaluate)


def _compare(folder: Path, trainings: tuple[Training, ...]) -> None:
    predictions = {training.title: folder / "predictions" / training.name for training in trainings}
    dice = report.compare({title: report.read_dice(path / "summary.json") for title, path in predictions.items()})
    report.write_csv(dice, folder / "dice.csv")
    report.draw(folder / "raw" / DATASET_NAME, predictions, dice, folder / "comparison.png")
    print(f"\n== Dice of each organ on the test scans\n{report.table(dice)}")
    for other, amount in ((SUPERVISED, "iterations"), (SAME_TIME, "time")):
        if other in trainings:
            gain = dice.loc["mean", DVCL.title] - dice.loc["mean", other.title]
            print(f"DVCL against nnU-Net, same {amount}: {gain:+.3f}")
    print(f"\nTable: {folder / 'dice.csv'}\nPicture: {folder / 'comparison.png'}")
