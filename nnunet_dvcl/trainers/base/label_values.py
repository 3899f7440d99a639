"""Label values that nnU-Net would stumble over: each is the number of a channel of the output."""

from __future__ import annotations

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.networks import full_resolution


def check_named_labels(label_manager: LabelManager) -> None:
    """``UserError`` where the labels of dataset.json have a gap: a label's value would not be its channel's number."""
    labels = sorted(label_manager.all_labels)
    if not label_manager.has_regions and labels != list(range(len(labels))):
        raise UserError(
            f"The labels of dataset.json are {', '.join(map(str, labels))}, expected 0 to {len(labels) - 1} "
            "without a gap. Renumber them, there and in labelsTr, and run nnUNetv2_plan_and_preprocess again."
        )


def check_labels_of(batch: dict, label_manager: LabelManager) -> None:
    """``UserError`` for a label without a channel of the output: a GPU would stop without saying why."""
    if label_manager.has_regions:  # there it is in no region
        return
    highest = max(*label_manager.all_labels, label_manager.ignore_label or 0)
    lowest_and_highest = torch.stack(full_resolution(batch["target"]).flatten(1).aminmax(dim=1), 1).tolist()
    for case, found in zip(batch["keys"], lowest_and_highest, strict=True):
        for label in found:
            if not 0 <= label <= highest:
                end = f"end at {highest}" if label > 0 else "begin at 0"
                raise UserError(
                    f"{case} has the label {label:g}, but the labels of dataset.json {end}. Mend it and preprocess "
                    "again; nnUNetv2_plan_and_preprocess --verify_dataset_integrity names all such cases."
                )
