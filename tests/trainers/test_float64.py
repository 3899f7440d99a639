"""Which trainers run on a device without float64, such as mps."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import nnunet_dvcl.trainers as trainers
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools import doctor

NAMES = [name for name in trainers.__all__ if name != "nnUNetTrainerSSL"]


class RefusesFloat64(TorchDispatchMode):
    """Makes a CPU what mps is in this respect."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in tree_leaves(result)):
            raise TypeError(f"Cannot convert to float64: {function}")
        return result


@pytest.mark.parametrize("name", NAMES)
def test_a_step_needs_float64_where_the_trainer_says_so(start, name):
    trainer_class = getattr(trainers, name)
    trainer = start(trainer_class, "2d_tiny", contrastive_start=0.0)
    batch = next(trainer.dataloader_train)
    if hasattr(trainer, "dataloader_unlabeled"):
        trainer.dataloader_unlabeled = iter([next(trainer.dataloader_unlabeled)])
    with RefusesFloat64():
        if getattr(trainer_class, "needs_float64", False):
            with pytest.raises(TypeError, match="float64"):
                trainer.train_step(batch)
        else:
            trainer.train_step(batch)


def test_mps_is_refused_before_any_work(build_trainer):
    trainer = build_trainer(trainers.nnUNetTrainerDVCL)
    trainer.device = torch.device("mps")
    with pytest.raises(UserError, match="nnUNetTrainerDVCL computes in float64, which mps lacks"):
        trainer.initialize()


def test_the_doctor_says_which_run_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found = next(doctor.check_device()).text
    assert "nnUNetTrainerCPS," in found
    assert "nnUNetTrainerSupervised" in found
    assert "DVCL" not in found
