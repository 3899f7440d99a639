"""Whole steps in half precision with a gradient scaler, as on a GPU; here bfloat16 on a CPU."""

from functools import partial

import pytest
import torch

import nnunet_dvcl.trainers as trainers

NAMES = [name for name in trainers.__all__ if name not in ("nnUNetTrainerSSL", "nnUNetTrainerSupervised")]


@pytest.mark.parametrize("name", NAMES)
def test_whole_steps_in_bfloat16_with_a_grad_scaler(start, monkeypatch, name):
    """Close to those in float32; finite, none skipped, and the scale as it was."""
    outputs = []
    for half in (False, True):
        trainer = start(
            getattr(trainers, name), "2d_tiny", consistency_start=0.0, contrastive_start=0.0, initial_lr=0.001
        )
        if half:
            trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
            monkeypatch.setattr(trainer, "autocast", partial(torch.autocast, "cpu", torch.bfloat16))
        batch = next(trainer.dataloader_train)
        trainer.dataloader_unlabeled = iter([next(trainer.dataloader_unlabeled)] * 2)
        torch.manual_seed(1)
        outputs.append([trainer.train_step(batch) for _ in range(2)])
    assert trainer.grad_scaler.get_scale() == 2.0**16
    for full, half in zip(*outputs, strict=True):
        assert half["skipped_steps"] == 0
        for key in ("total", *(term for term in trainer.loss_terms if term.startswith("supervised"))):
            assert half[key] == pytest.approx(full[key], rel=0.05, abs=0.05), key


def test_an_overflow_is_a_skipped_step_and_halves_the_scale(start, monkeypatch):
    trainer = start(trainers.nnUNetTrainerDVCL, "2d_tiny")
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    monkeypatch.setattr(trainer, "autocast", partial(torch.autocast, "cpu", torch.bfloat16))
    batch = next(trainer.dataloader_train)
    handle = next(trainer.network.parameters()).register_hook(lambda g: torch.full_like(g, torch.inf))
    before = [p.clone() for p in trainer.network.parameters()]
    assert trainer.train_step(batch)["skipped_steps"] == 1
    assert trainer.grad_scaler.get_scale() == 2.0**15
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
    handle.remove()
    assert trainer.train_step(batch)["skipped_steps"] == 0
