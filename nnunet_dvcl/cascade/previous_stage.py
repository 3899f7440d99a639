"""The second input of a cascade: what its previous stage has predicted of each case, where it lies, what is missing.

When a training of the previous stage is finished, nnU-Net predicts the validation cases of its fold: a labeled case
gets a prediction of a network that was not trained on it. All folds share a folder, ``predicted_next_stage/<stage>``. A
case that is unlabeled in one fold may be labeled in another. So what is predicted of unlabeled cases lies in a folder
of each fold, ``fold_X/predicted_next_stage/<stage>``, and fold X of the cascade sees what fold X has predicted.
"""

import shlex
from collections.abc import Collection
from dataclasses import dataclass
from os.path import isdir, join
from pathlib import Path

import numpy as np
from nnunetv2.utilities.file_path_utilities import get_output_folder
from nnunetv2.utilities.label_handling.label_handling import LabelManager, convert_labelmap_to_one_hot
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dvcl.commands import plans_option, train_command
from nnunet_dvcl.data.folders import DatasetFolders
from nnunet_dvcl.data.messages import bullet_list
from nnunet_dvcl.data.splits import folds_that_validate
from nnunet_dvcl.data.unlabeled_dataset import UnlabeledDataset
from nnunet_dvcl.errors import UserError

_FOLDER = "predicted_next_stage"


@dataclass(frozen=True)
class PreviousStage:
    """A model that predicts for the next stage of a cascade, in one fold; names as nnU-Net's commands take them."""

    plans_manager: PlansManager
    trainer: str
    configuration: str
    next_stage: str
    fold: int | str

    @property
    def dataset(self) -> str:
        return self.plans_manager.dataset_name

    @property
    def model(self) -> str:
        return get_output_folder(self.dataset, self.trainer, self.plans_manager.plans_name, self.configuration)

    @property
    def labeled(self) -> str:
        """nnU-Net's folder of what is predicted of labeled cases, each by the fold that validates on it."""
        return join(self.model, _FOLDER, self.next_stage)

    @property
    def unlabeled(self) -> str:
        """The folder of what this fold predicts of its unlabeled cases."""
        return join(self.model, f"fold_{self.fold}", _FOLDER, self.next_stage)

    def check_labeled(self, cases: Collection[str], splits_file: str) -> None:
        """``UserError`` where one of the cases has no prediction; gives the commands that make them."""
        if not (missing := sorted(set(cases) - predicted_cases(self.labeled).keys())):
            return
        validated = {c: ["all"] if self.fold == "all" else folds_that_validate(splits_file, c) for c in missing}
        folds = sorted({folds[0] for folds in validated.values() if folds})
        message = (
            f"{len(missing)} of {len(cases)} labeled cases have no prediction of {self.configuration} in "
            f"{self.labeled}:\n{bullet_list(missing)}"
        )
        if folds:
            commands = "".join(f"\n  {self._train_command(fold)}" for fold in folds)
            message += (
                f"\nA training of {self.configuration} predicts the cases that its fold validates on when it is "
                f"finished. Run, with --val for a fold that is trained already:{commands}"
            )
        if never := [case for case in missing if not validated[case]]:
            message += (
                f"\nNo fold of {splits_file} validates on these, so nothing predicts them. Each labeled case of a "
                f'cascade has to be in the "val" of some fold:\n{bullet_list(never)}'
            )
        raise UserError(message)

    def check_unlabeled(self, dataset: UnlabeledDataset) -> None:
        """``UserError`` where a case has no prediction that fits it; gives the commands that make them."""
        predicted = predicted_cases(self.unlabeled)
        if missing := [case for case in dataset.identifiers if case not in predicted or not _fits(dataset, case)]:
            options = ("-d", self.dataset, "-c", self.configuration, "-f", str(self.fold), "-tr", self.trainer)
            predict = ("nnunet_dvcl", "predict-next-stage", *options, *plans_option(self.plans_manager.plans_name))
            raise UserError(
                f"{len(missing)} of {len(dataset)} unlabeled cases have no prediction of {self.configuration} that "
                f"fits them in {self.unlabeled}:\n{bullet_list(missing)}\n"
                f"A training of {self.configuration} predicts the unlabeled cases of its fold when it is finished:\n"
                f"  {self._train_command(self.fold)}\n"
                "Where it is finished already, predict what is missing:\n"
                f"  {shlex.join(predict)}"
            )

    def _train_command(self, fold: int | str) -> str:
        plans = self.plans_manager.plans_name
        return train_command(self.dataset, self.configuration, fold, self.trainer, plans)


def predicted_cases(folder: str) -> dict[str, Path]:
    """Case -> file of what is predicted for the next stage; empty when there is no folder."""
    suffixes = (".b2nd", ".npz")  # of nnU-Net's two dataset classes
    return {f.stem: f for f in Path(folder).iterdir() if f.suffix in suffixes} if isdir(folder) else {}


def _fits(dataset: UnlabeledDataset, case: str) -> bool:
    image, _, segmentation, _ = dataset.load_case(case)
    return segmentation.shape == image.shape[1:]


def with_previous_stage(image: np.ndarray, segmentation: np.ndarray, label_manager: LabelManager) -> np.ndarray:
    """The input of a cascade's network, [channels + foreground labels, *S] float32.

    Args:
        image: [channels, *S] float32.
        segmentation: [*S], nnU-Net's label map as the previous stage has predicted it.
    """
    one_hot = convert_labelmap_to_one_hot(segmentation, label_manager.foreground_labels, output_dtype=image.dtype)
    return np.vstack((image, one_hot))


def stage_before(
    plans_manager: PlansManager, trainer: str, configuration: str, fold: int | str
) -> PreviousStage | None:
    """The model whose predictions a cascade uses; None where ``configuration`` is no cascade."""
    previous = plans_manager.get_configuration(configuration).previous_stage_name
    return None if previous is None else PreviousStage(plans_manager, trainer, previous, configuration, fold)


def next_stages(plans_manager: PlansManager, configuration: str) -> list[str]:
    """The configurations that use what ``configuration`` predicts: in the plans each names the other."""
    names = plans_manager.get_configuration(configuration).next_stage_names or []
    known = [name for name in names if name in plans_manager.available_configurations]
    return [name for name in known if plans_manager.get_configuration(name).previous_stage_name == configuration]


def check_stages(plans_manager: PlansManager, configuration: str) -> None:
    """``UserError`` where the stages before and after do not fit; nnU-Net would stumble over it after the training."""
    for name in plans_manager.get_configuration(configuration).next_stage_names or []:
        if name not in plans_manager.available_configurations:
            raise UserError(
                f"The next stage of {configuration} is {name}, which the plans do not have. Make it (nnunet_dvcl "
                f"configure ... --name {name} previous_stage={configuration}), or give {configuration} no next stage "
                "(next_stage=null)."
            )
        # raises where the next stage is not preprocessed: the predictions are made in its shape
        DatasetFolders.of(plans_manager, plans_manager.get_configuration(name)).dataset_class()
    check_previous_stage(plans_manager, configuration)


def check_previous_stage(plans_manager: PlansManager, configuration: str) -> None:
    """``UserError`` where ``configuration`` names a previous stage that does not name it in turn."""
    previous = plans_manager.get_configuration(configuration).previous_stage_name
    if previous is None:
        return
    problem = f"The previous stage of {configuration} is {previous}, which"
    if previous not in plans_manager.available_configurations:
        raise UserError(f"{problem} the plans do not have.")
    if configuration not in next_stages(plans_manager, previous):
        raise UserError(
            f"{problem} predicts nothing for it: the next stage of {previous} is "
            f"{plans_manager.get_configuration(previous).configuration.get('next_stage')}. Make a previous stage for "
            f"{configuration}: nnunet_dvcl configure ... -c {previous} --name NAME next_stage={configuration}; then "
            f"give {configuration} the value previous_stage=NAME."
        )
