"""Trained models: ``nnunet_dvcl plot``, ``export`` and ``inspect``."""

from nnunet_dvcl.tools.commands.declaring import argument, command, one_of
from nnunet_dvcl.tools.commands.shared import CHECKPOINT, DEVICE, FOLD, fold, output_folder, plan_options, positive_int

_PLOTS = output_folder("./nnunet_dvcl_plots")


@command(
    argument("folders", nargs="+", metavar="RESULT_FOLDER", help="a trained model's folder, or a fold's"),
    argument("--keys", metavar="KEY", nargs="+", default=["*"], help="logged values to draw, e.g. dvcl 'val_*' (all)"),
    _PLOTS,
)
def curves(folders: list[str], keys: list[str], o: str) -> None:
    """Pseudo Dice and logged values of several trainings."""
    from nnunet_dvcl.tools.plots.curves import plot_curves

    plot_curves(folders, o, keys)


@command(
    *plan_options(),
    FOLD,
    argument("-tr", metavar="TRAINER", nargs="+", required=True, help="one or more trained trainers"),
    argument("--cases", metavar="CASE", nargs="+", default=[], help="labeled cases (the first 4 of validation)"),
    argument("-chk", metavar="FILE", nargs="+", default=[], help="checkpoints (the best and the last)"),
    DEVICE,
    argument("--voxels", metavar="N", type=positive_int, default=2000, help="in a panel (%(default)s)"),
    _PLOTS,
)
def features(
    d: str, c: str, p: str, f: str, tr: list, cases: list, chk: list, device: str | None, voxels: int, o: str
) -> None:
    """Features of reliable and unreliable voxels, by t-SNE and true organ."""
    from nnunet_dvcl.tools.plots.features import plot_features

    plot_features(d, c, f, tr, o, p, cases, chk, device, voxels)


@command(one_of("pictures", "PICTURE", curves, features))
def plot() -> None:
    """Draw curves of trainings, or features of voxels."""


@command(
    argument("folder", metavar="RESULT_FOLDER", help="a trained model's folder, or a fold's"),
    argument("--network", required=True, help="a, b, teacher, or both: two folds, which nnU-Net averages"),
    argument("--to", metavar="FOLDER", required=True, help="a new or empty folder"),
    argument("-f", metavar="FOLD", type=fold, help="a number, or all (the only one that is trained)"),
    CHECKPOINT,
    argument("--no-compare", action="store_true", help="do not predict the validation cases with A and B"),
    DEVICE,
)
def export(folder: str, network: str, to: str, f: str | None, chk: str, no_compare: bool, device: str | None) -> None:
    """Write a trained model as a folder that plain nnU-Net predicts from."""
    from nnunet_dvcl.commands import device_option
    from nnunet_dvcl.tools.export.model import export_model, networks_meant
    from nnunet_dvcl.tools.running.command import Command

    export_model(folder, network, to, f, chk, not no_compare, device)
    folds = range(len(networks_meant(network)))
    words = ("nnUNetv2_predict_from_modelfolder", "-i", "INPUT", "-o", "OUTPUT", "-m", to, "-f", *folds)
    print(f"Wrote {to}. Predict with: {Command(*words, *device_option())}")


@command(argument("path", metavar="CHECKPOINT", help="a .pth file, or a trained model's folder: its newest ones"))
def inspect(path: str) -> None:
    """Print what a checkpoint holds, without running code from it."""
    from os.path import isdir

    from nnunet_dvcl.tools.inspection import describe, read_plain

    files = [path]
    if isdir(path):
        from nnunet_dvcl.tools.model_folders import find_folds

        files = [fold.newest_checkpoint() for fold in find_folds(path)]
    print("\n\n".join(describe(file, read_plain(file)) for file in files))
