"""Arguments that several commands share."""

from nnunet_dvcl.tools.commands.declaring import Part, argument, checked

positive_int = checked("positive_int", int, lambda value: value > 0, "{} is not a positive number")
fold = checked("fold", str, lambda text: text == "all" or text.isdecimal(), "{} is no fold: expected a number or all")

DATASET = argument("-d", metavar="DATASET", required=True, help="dataset name or id")
PLANS = argument("-p", metavar="PLANS", default="nnUNetPlans", help="plans identifier (%(default)s)")
FOLD = argument("-f", metavar="FOLD", type=fold, required=True, help="a number, or all")
CHECKPOINT = argument("-chk", metavar="FILE", default="checkpoint_final.pth", help="checkpoint (%(default)s)")
DEVICE = argument("-device", choices=("cpu", "cuda", "mps"), help="a GPU where there is one")


def plan_options(help: str = "configuration, e.g. 3d_fullres", **configuration) -> tuple[Part, ...]:
    """``-d``, ``-c`` and ``-p``; what is given is for ``-c``."""
    return DATASET, argument("-c", metavar="CONFIGURATION", required=True, help=help, **configuration), PLANS


def output_folder(default: str) -> Part:
    return argument("-o", metavar="FOLDER", default=default, help="output folder (%(default)s)")
