"""``nnunet_dvcl predict-next-stage``: what a finished first stage has not predicted for the next one."""

from __future__ import annotations

from os.path import dirname

from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dvcl.cascade.next_stage import predict_unlabeled
from nnunet_dvcl.cascade.previous_stage import next_stages
from nnunet_dvcl.data.folders import find_plans_file
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.device import find_device
from nnunet_dvcl.tools.model_folders import choose_checkpoints, find_trained
from nnunet_dvcl.tools.trainer_classes import find_trainer_class


def predict_next_stage(
    dataset_name_or_id: str,
    configuration: str,
    fold: int | str,
    trainer: str,
    plans_identifier: str = "nnUNetPlans",
    checkpoint: str = "checkpoint_final.pth",
    device: str | None = None,
    num_processes: int = default_num_processes,
) -> list[str]:
    """Predicts for the next stages what a finished training has not; returns their folders of predictions.

    The training is named as for nnU-Net's commands, `checkpoint` by its file, `device` as for `find_device`;
    `num_processes` resample and save.

    Raises:
        UserError: not trained, the plans name no next stage, its cases are not preprocessed, or there is no unlabeled
            case.
    """
    trained = find_trained(dataset_name_or_id, trainer, plans_identifier, configuration, fold)
    (name,) = choose_checkpoints(trained, [checkpoint])
    plans_manager = PlansManager(find_plans_file(dataset_name_or_id, plans_identifier))
    if not next_stages(plans_manager, configuration):
        having = [name for name in plans_manager.available_configurations if next_stages(plans_manager, name)]
        raise UserError(
            f"The plans name no next stage that uses what {configuration} predicts. Configurations with one: "
            f"{', '.join(having) or 'none'}."
        )
    predictor = nnUNetPredictor(device=find_device(device), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(dirname(trained.folder), (trained.fold,), name)
    # as they are now: the next stage may be younger than the plans that lie beside the model
    predictor.plans_manager = plans_manager
    read_options = find_trainer_class(trainer).config_class.from_plans
    return predict_unlabeled(predictor, trainer, configuration, trained.fold, num_processes, print, read_options)
