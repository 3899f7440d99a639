"""What every trainer of ours holds, checked in one short training on one batch."""

import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from small_values import SMALL
from torch import Tensor, nn

from nnunet_dvcl.networks import full_resolution, unwrap

STEPS = 15
SHORT = SMALL | {
    "initial_lr": 0.02,
    "num_iterations_per_epoch": STEPS,
    "validation_voxels": 200,
    "contrastive_start": 0.0,
    "confidence": 0.7,
}
"""The first of two epochs is trained; the second is where a resumed training goes on."""

Build = Callable[..., nnUNetTrainer]
"""``build(continue_training=False)``: a new trainer, the same each time."""


def check_contract(build: Build) -> nnUNetTrainer:
    """Trains an epoch on one labeled and one unlabeled batch, and checks

    - gradients: finite, and they reach every parameter that has a part in the loss,
    - loss: each student's supervised loss falls, no term stays 0,
    - prediction: plain nnU-Net loads the result and its logits are those of network A,
    - resume: a new trainer has the whole state back and goes on with the same numbers.

    Returns:
        the trainer, one step into its second epoch.
    """
    trainer = build()
    trainer.on_train_start()
    labeled = next(trainer.dataloader_train)
    repeat_one_unlabeled_batch(trainer)
    check_what_is_trained(trainer)

    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    outputs, reached = [], set()
    for _ in range(STEPS):
        outputs.append(trainer.train_step(labeled))
        reached |= parameters_reached(trainer)
    check_gradients(trainer, reached)
    check_losses(trainer, outputs)
    finish_epoch(trainer, outputs)

    file = Path(trainer.output_folder, "checkpoint_final.pth")
    trainer.save_checkpoint(str(file))
    assert [written.name for written in file.parent.glob("checkpoint*")] == [file.name]
    check_prediction(trainer, next(trainer.dataloader_val)["data"])
    resumed = build(continue_training=True)
    resumed.load_checkpoint(str(file))
    check_resumed(trainer, resumed, labeled)
    return trainer


def repeat_one_unlabeled_batch(trainer) -> None:
    if hasattr(trainer, "dataloader_unlabeled"):
        trainer.dataloader_unlabeled = repeat(next(trainer.dataloader_unlabeled))


def finish_epoch(trainer, outputs: list[dict]) -> None:
    """The rest of nnU-Net's epoch but its pictures, which take longer than the training; it changes no state."""
    before = state(trainer)
    trainer.on_train_epoch_end(outputs)
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val))])
    check_same(before, state(trainer))
    for key, values in trainer.logger.get_checkpoint().items():
        if key.startswith("ssl/val_"):
            assert 0 <= values[-1] <= 1 or np.isnan(values[-1]), f"{key} is no share: {values[-1]}"


# ---------------------------------------------------------------- gradients


def trained_modules(trainer) -> dict[str, nn.Module]:
    return {"A": trainer.network, **getattr(trainer, "companions", {})}


def students(trainer) -> dict[str, nn.Module]:
    return trainer.students() if hasattr(trainer, "students") else {"A": trainer.network}


def parameters(modules: dict[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    for name, module in modules.items():
        yield from ((f"{name}.{key}", p) for key, p in unwrap(module).named_parameters() if p.requires_grad)


def check_what_is_trained(trainer) -> None:
    """The optimizer has every trainable parameter of A and its companions once, and none of the memories."""
    held = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)), "a parameter is in the optimizer twice"
    missing = [name for name, p in parameters(trained_modules(trainer)) if id(p) not in held]
    assert not missing, f"not in the optimizer: {missing}"
    assert len(held) == len(list(parameters(trained_modules(trainer)))), "the optimizer has parameters of nobody"


def parameters_reached(trainer) -> set[str]:
    """Parameters with a gradient other than 0 after a step; asserts that all gradients are finite."""
    graded = {name: p.grad for name, p in parameters(trained_modules(trainer)) if p.grad is not None}
    norms = torch.stack(torch._foreach_norm(list(graded.values()))).tolist()
    assert np.isfinite(norms).all(), {name: norm for name, norm in zip(graded, norms, strict=True)}
    return {name for name, norm in zip(graded, norms, strict=True) if norm > 0}


def check_gradients(trainer, reached: set[str]) -> None:
    missing = {name for name, _ in parameters(trained_modules(trainer))} - reached - without_part_in_the_loss(trainer)
    assert not missing, f"no gradient reached {sorted(missing)}"


def without_part_in_the_loss(trainer) -> set[str]:
    """The segmentation layers of the levels that nnU-Net's deep supervision weighs with 0, or does not look at."""
    weights = trainer.loss.weight_factors if trainer.enable_deep_supervision else [1.0]
    unused = set()
    for name, network in students(trainer).items():
        layers = unwrap(network).decoder.seg_layers
        for i in range(len(layers)):  # lowest resolution first, the loss has it last
            level = len(layers) - 1 - i
            if level >= len(weights) or weights[level] == 0:
                unused |= {key for key, _ in parameters({f"{name}.decoder.seg_layers.{i}": layers[i]})}
    return unused


# ---------------------------------------------------------------- losses


def check_losses(trainer, outputs: list[dict]) -> None:
    supervised = [name for name in outputs[0] if name.startswith("supervised_")] or ["loss"]
    assert len(supervised) == len(students(trainer))
    for name in supervised:
        curve = [float(output[name]) for output in outputs]
        assert np.mean(curve[-5:]) < np.mean(curve[:5]) - 0.1, f"{name} does not fall: {curve}"
    terms = getattr(trainer, "loss_terms", ())
    for name in (*terms, "total") if terms else supervised:
        assert np.isfinite([output[name] for output in outputs]).all(), name
        assert any(output[name] != 0 for output in outputs), f"{name} was 0 all the time"


# ---------------------------------------------------------------- prediction


@torch.no_grad()
def check_prediction(trainer, image: Tensor) -> None:
    """As nnUNetv2_predict reads the folder of the model."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (trainer.fold,))
    loads = recursive_find_trainer_class_by_name(predictor.trainer_name)
    assert loads.__module__.startswith("nnunetv2."), f"prediction needs {loads}"
    predicted = predictor.network.eval()(image)
    network = unwrap(trainer.network)
    network.eval()
    assert torch.equal(predicted, full_resolution(network(image))), "plain nnU-Net has other logits than network A"
    network.train()


# ---------------------------------------------------------------- resume


def state(trainer) -> dict[str, object]:
    """Everything that training changes, flat."""
    flat = {}
    for name, module in (*trained_modules(trainer).items(), ("memory", getattr(trainer, "memory", nn.Module()))):
        flat |= {f"{name}.{key}": deepcopy(value) for key, value in unwrap(module).state_dict().items()}
    optimizer = trainer.optimizer.state_dict()
    for i, slots in optimizer["state"].items():
        flat |= {f"optimizer.{i}.{key}": torch.as_tensor(value).clone() for key, value in slots.items()}
    return flat | {"groups": optimizer["param_groups"], "iteration": getattr(trainer, "iteration", None)}


def check_same(expected: dict, found: dict) -> None:
    assert expected.keys() == found.keys(), expected.keys() ^ found.keys()
    differ = [key for key, value in expected.items() if not same(value, found[key])]
    assert not differ, f"differ: {differ}"


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def check_resumed(trainer, resumed, labeled: dict) -> None:
    check_same(state(trainer), state(resumed))
    trainer.current_epoch += 1
    assert resumed.current_epoch == trainer.current_epoch
    assert getattr(resumed, "progress", None) == getattr(trainer, "progress", None)
    assert resumed.logger.get_checkpoint().keys() == trainer.logger.get_checkpoint().keys()
    outputs = []
    for each in (trainer, resumed):
        if hasattr(trainer, "dataloader_unlabeled"):
            each.dataloader_unlabeled = trainer.dataloader_unlabeled
        each.on_train_epoch_start()
        seed(1)
        outputs.append(each.train_step(labeled))
    assert outputs[0].keys() == outputs[1].keys()
    np.testing.assert_equal(*outputs)  # nan equals nan
    check_same(state(trainer), state(resumed))


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
