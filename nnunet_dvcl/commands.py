"""nnU-Net's commands as messages give them: whole lines, to be copied into a shell."""

import re
import shlex

import torch


def train_command(dataset: str, configuration: str, fold: int | str, trainer: str, plans: str) -> str:
    """``nnUNetv2_train`` of a fold; the arguments are named as the command takes them."""
    words = ("nnUNetv2_train", dataset, configuration, str(fold), "-tr", trainer)
    return shlex.join((*words, *plans_option(plans), *device_option()))


def plans_option(plans: str) -> tuple[str, ...]:
    """``-p``, where they are not the plans that nnU-Net takes without it."""
    return () if plans == "nnUNetPlans" else ("-p", plans)


def device_option() -> tuple[str, ...]:
    """``-device``, where there is no GPU: nnU-Net takes one without looking, and then fails."""
    return () if torch.cuda.is_available() else ("-device", "cpu")


def dataset_number(name: str) -> str:
    """Of DatasetXXX_Name, for nnU-Net's commands that plan and preprocess: they take no name."""
    match = re.match(r"Dataset(\d{3})_", name, re.ASCII)
    return str(int(match[1])) if match else name
