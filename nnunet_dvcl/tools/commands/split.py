"""``nnunet_dvcl split``"""

import argparse

from nnunet_dvcl.tools.commands.arguments import add_command, add_dataset, positive_int


def add(commands) -> None:
    command = add_command(commands, "split", run, "divide the labeled cases: folds, labels to withhold, test cases")
    add_dataset(command)
    number = command.add_mutually_exclusive_group(required=True)
    number.add_argument("--labeled", metavar="SHARE", type=_share, help="of a fold's training cases, e.g. 0.1")
    number.add_argument("--count", metavar="N", type=positive_int, help="number of labeled cases of a fold")
    command.add_argument("--unlabeled", metavar="N", type=positive_int, help="number of unlabeled cases (all others)")
    command.add_argument("--test", metavar="SHARE", type=_share, default=0.0, help="of all cases, for testing (none)")
    command.add_argument("--folds", metavar="N", type=positive_int, default=5, help="number of folds (%(default)s)")
    command.add_argument("--seed", metavar="N", type=int, default=0, help="another seed, another draw (%(default)s)")
    command.add_argument("--group-by", metavar="REGEX", help="finds a case's patient in its identifier")
    command.add_argument("--stratify", action="store_true", help="balance how often each class occurs")
    command.add_argument("--force", action="store_true", help="replace a split that is there; it is kept as .bak")


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share: expected a number above 0, at most 1")
    return value


def run(args: argparse.Namespace) -> int:
    from nnunet_dvcl.tools.split.split_dataset import SPLITS_FILE, TEST_FILE, split_dataset

    splits = split_dataset(
        args.d,
        labeled=args.labeled,
        count=args.count,
        unlabeled=args.unlabeled,
        test=args.test,
        num_folds=args.folds,
        seed=args.seed,
        group_pattern=args.group_by,
        stratify=args.stratify,
        force=args.force,
    )
    for number, fold in enumerate(splits.folds):
        sizes = (
            f"{len(fold['train'])} labeled",
            f"{len(fold['unlabeled'])} unlabeled",
            f"{len(fold['val'])} validation",
        )
        print(f"fold {number}: {', '.join(sizes)} cases")
    if splits.test:
        print(f"{len(splits.test)} test cases, in no fold: {TEST_FILE}")
    print(f"Wrote {SPLITS_FILE} of data set {args.d}. nnUNetv2_train reads it for folds 0 to {len(splits.folds) - 1}.")
    return 0
