"""Data sets: ``nnunet_dvcl convert``, ``split``, ``preprocess`` and ``configure``."""

import argparse

from nnunet_dvcl.tools.commands.declaring import argument, checked, command
from nnunet_dvcl.tools.commands.shared import DATASET, plan_options, positive_int
from nnunet_dvcl.tools.convert import RELEASES

dataset_id = checked("dataset_id", positive_int, lambda value: value < 1000, "{} is not a number from 1 to 999")
_share = checked("_share", float, lambda value: 0 < value <= 1, "{} is no share: expected a number above 0, at most 1")


@command(
    argument("dataset", choices=RELEASES, help="one of %(choices)s", metavar="DATASET"),
    argument("source", metavar="SOURCE", help="the folder into which the data set was unpacked"),
    argument("-d", metavar="ID", type=dataset_id, required=True, help="number of the new dataset, 1 to 999"),
    argument("--link", action="store_true", help="link to the images instead of copying them"),
    argument(
        "--max-unlabeled", metavar="N", type=positive_int, help="take the first N scans without labels only (all)"
    ),
    argument("--any-count", action="store_true", help="accept an incomplete data set"),
    argument(
        "--ignore-geometry", action="store_true", help="give a segmentation that lies elsewhere its image's geometry"
    ),
)
def convert(
    dataset: str, source: str, d: int, link: bool, max_unlabeled: int | None, any_count: bool, ignore_geometry: bool
) -> None:
    """Bring one of the paper's data sets into nnU-Net's raw format."""
    from nnunet_dvcl.tools.convert.raw_dataset import convert_dataset

    convert_dataset(dataset, source, d, link, max_unlabeled, any_count, ignore_geometry)


def _how_many_labeled(parser: argparse.ArgumentParser) -> None:
    number = parser.add_mutually_exclusive_group(required=True)
    number.add_argument("--labeled", metavar="SHARE", type=_share, help="of a fold's training cases, e.g. 0.1")
    number.add_argument("--count", metavar="N", type=positive_int, help="number of labeled cases of a fold")


@command(
    DATASET,
    _how_many_labeled,
    argument("--unlabeled", metavar="N", type=positive_int, help="number of unlabeled cases (all others)"),
    argument("--test", metavar="SHARE", type=_share, default=0.0, help="of all cases, for testing (none)"),
    argument("--folds", metavar="N", type=positive_int, default=5, help="number of folds (%(default)s)"),
    argument("--seed", metavar="N", type=int, default=0, help="another seed, another draw (%(default)s)"),
    argument("--group-by", metavar="REGEX", help="finds a case's patient in its identifier"),
    argument("--stratify", action="store_true", help="balance how often each class occurs"),
    argument("--force", action="store_true", help="replace a split that is there; it is kept as .bak"),
)
def split(d: str, folds: int, group_by: str | None, **options) -> None:
    """Divide the labeled cases: folds, labels to withhold, test cases."""
    from nnunet_dvcl.tools.split.split_dataset import SPLITS_FILE, TEST_FILE, split_dataset

    splits = split_dataset(d, num_folds=folds, group_pattern=group_by, **options)
    for number, fold in enumerate(splits.folds):
        labeled, unlabeled, validation = (len(fold[part]) for part in ("train", "unlabeled", "val"))
        print(f"fold {number}: {labeled} labeled, {unlabeled} unlabeled, {validation} validation cases")
    if splits.test:
        print(f"{len(splits.test)} test cases, in no fold: {TEST_FILE}")
    print(f"Wrote {SPLITS_FILE} of data set {d}. nnUNetv2_train reads it for folds 0 to {len(splits.folds) - 1}.")


@command(
    *plan_options("one or more configurations, e.g. 2d 3d_fullres", nargs="+"),
    argument("-np", metavar="N", type=positive_int, help="number of processes (nnU-Net's default)"),
    argument("--skip-bad", action="store_true", help="leave out scans that cannot be used, and list them in a file"),
)
def preprocess(d: str, c: list[str], p: str, np: int | None, skip_bad: bool) -> None:
    """Preprocess a dataset's unlabeled scans ahead of training."""
    from nnunetv2.configuration import default_num_processes

    from nnunet_dvcl.data.preprocess import preprocess_unlabeled

    for configuration in c:
        print(f"{configuration}: {preprocess_unlabeled(d, configuration, p, np or default_num_processes, skip_bad)}")


@command(
    *plan_options("configuration to start from, e.g. 3d_fullres"),
    argument("--name", required=True, help="name of the new configuration"),
    argument("--preset", metavar="{paper}", help="the network and patches of the paper's protocol"),
    argument("assignments", nargs="*", metavar="KEY=VALUE", help="e.g. batch_size=2 ssl.num_epochs=20"),
)
def configure(d: str, c: str, p: str, name: str, preset: str | None, assignments: list[str]) -> None:
    """Write a configuration of your own into the plans."""
    from nnunet_dvcl.tools.configure import configure
    from nnunet_dvcl.tools.trainer_classes import preset_assignments

    # what is given counts after the preset, and so instead of it
    configure(d, c, name, p, [*preset_assignments(preset), *assignments])
