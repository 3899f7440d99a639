"""A step as a GPU would see it, without one: on tensors with a device, a dtype and a shape, and no content.

Two devices in one operation are an error, waits of the host are counted, and CUDA's autocast chooses the dtypes. There
are no gradients: autograd would ask the driver for a GPU.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import nnunet_dvcl.trainers as trainers
from nnunet_dvcl.losses import high_quality
from nnunet_dvcl.trainers.base import Step, Term
from nnunet_dvcl.trainers.nnUNetTrainerDVCL import VALIDATED

CUDA = torch.device("cuda", 0)  # without a number torch would ask the driver for it
NAMES = [name for name in trainers.__all__ if name not in ("nnUNetTrainerSSL", "nnUNetTrainerSupervised")]
# for the number of queries: docs/performance.md
WAITING = {f"nnUNetTrainerDVCL_{x}" for x in ("InfoNCE", "NNCLR", "SNCLR", "SimCLR", "LogLikelihood_SNCLRWeights")}
WAITING.add("nnUNetTrainerCL_VCL")


class GPU(TorchDispatchMode):
    """Counts what the host would wait for, and goes on: a value is 1, a mask selects everything.

    Args:
        pinned: tensors of the loaders, which alone can be copied without waiting.
    """

    def __init__(self, pinned: Sequence[Tensor] = ()):
        super().__init__()
        self.pinned = {id(tensor) for tensor in pinned}
        self.waits: Counter[str] = Counter()
        self.products: set[torch.dtype] = set()  # of matrices

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function.name().removeprefix("aten::").split(".")[0], kwargs or {}
        if name == "_local_scalar_dense":
            self.waits["value"] += args[0].device == CUDA
            return 1.0 if args[0].dtype.is_floating_point else 1
        if name == "_to_copy" and args[0].device != kwargs.get("device", args[0].device):
            self.waits["copy"] += not (kwargs.get("non_blocking") and id(args[0]) in self.pinned)
            return torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device=kwargs["device"])
        if name in ("index", "index_put_") and any(_is_mask(x) for x in args[1]):
            self.waits["selection"] += 1
            everything = [torch.arange(len(x), device=CUDA) if _is_mask(x) else x for x in args[1]]
            args = (args[0], everything, *args[2:])
        result = function(*args, **kwargs)
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            self.products.add(result.dtype)
        return result


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype == torch.bool


@pytest.fixture
def on_gpu(monkeypatch):
    """``with on_gpu(trainer) as fake``: a trainer that was built on the CPU is on a GPU; ``fake(batch)`` is for it."""

    @contextmanager
    def block(trainer):
        # as it is entered, the mode looks whether there is a GPU, and makes one up where there is none
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, monkeypatch.context() as patch:
            for name, value in (("is_available", True), ("is_initialized", True), ("current_device", 0)):
                patch.setattr(torch.cuda, name, lambda value=value: value)
            patch.setattr(Tensor, "backward", lambda self: None)
            for module in (trainer.network, trainer.companions, trainer.memory):
                _move(module)
            for name, own in [(name, own) for name, own in vars(trainer).items() if isinstance(own, Tensor)]:
                setattr(trainer, name, torch.empty_like(own, device=CUDA))
            trainer.device = CUDA
            yield lambda batch: tree_map_only(Tensor, mode.from_tensor, batch)

    return block


def _move(module: nn.Module) -> None:
    """``module.to(CUDA)``, which fake tensors do not allow in place."""
    for part in module.modules():
        for owned in (part._parameters, part._buffers):
            for name, tensor in owned.items():
                if tensor is not None:
                    moved = torch.empty_like(tensor, device=CUDA)
                    owned[name] = (
                        nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
                    )


class Seen(NamedTuple):
    """A step on the GPU."""

    gpu: GPU
    step: Step
    terms: dict[str, Term]
    scalars: list[Tensor]


def _step(trainer, on_gpu) -> Seen:
    trainer.iteration = 1  # in the first one of an epoch the gradients of terms are measured
    batches = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)
    steps, after_forward = [], trainer.after_forward
    trainer.after_forward = lambda step: steps.append(step) or after_forward(step)
    with on_gpu(trainer) as fake:
        batches = [fake(batch) for batch in batches]
        with GPU(pinned=[x for x in tree_leaves(batches) if isinstance(x, Tensor)]) as gpu:
            terms, statistics = trainer._compute_terms(*batches)
        with GPU():
            trainer.after_step()
    values = [*(term.value for term in terms.values()), *statistics.values()]
    return Seen(gpu, steps[0], terms, [value for value in values if isinstance(value, Tensor)])


def _reads_of_nnunet(trainer) -> int:
    """Its loss with an ignore label, which that of pseudo-labels always has, asks on each level for known voxels."""
    if trainer.label_manager.has_regions:
        return 0
    levels = sum(map(bool, trainer.loss.weight_factors)) if trainer.enable_deep_supervision else 1
    pseudo_labels = getattr(trainer.config, "pseudo_label_loss", "ce") == "nnunet"
    return len(trainer.student_names) * levels * (pseudo_labels + trainer.label_manager.has_ignore_label)


LABEL_MODES = [
    ("nnUNetTrainerCPS", "ignore"),
    ("nnUNetTrainerCPS", "regions"),
    ("nnUNetTrainerDVCL", "regions + ignore"),
]


@pytest.mark.parametrize(("name", "label_mode"), [*((name, "labels") for name in NAMES), *LABEL_MODES])
def test_a_step_is_on_one_device_in_half_precision_and_waits_for_nothing_else(start, on_gpu, name, label_mode):
    trainer = start(getattr(trainers, name), "2d_tiny", consistency_start=0.0, contrastive_start=0.0)
    seen = _step(trainer, on_gpu)
    volumes = [*seen.step.logits.values(), *seen.step.features.values()]
    assert {volume.dtype for volume in volumes} == {torch.float16}
    assert all(term.value.dtype in (torch.float32, torch.float64) for term in seen.terms.values())
    memory = *trainer.memory.parameters(), *trainer.memory.buffers()
    assert {x.device for x in (*volumes, *seen.scalars, *memory)} == {CUDA}
    assert seen.gpu.waits["value"] == _reads_of_nnunet(trainer) + (name in WAITING)
    assert seen.gpu.waits["copy"] == 0
    assert bool(seen.gpu.waits["selection"]) == (name in WAITING)
    if hasattr(trainer, "project"):
        assert seen.gpu.products == {torch.float32}, "the contrast is computed in float32"


def test_what_is_measured_once_an_epoch_is_on_one_device(start, on_gpu, monkeypatch):
    trainer = start(trainers.nnUNetTrainerDVCL, "2d_tiny")
    with on_gpu(trainer), GPU() as gpu, torch.no_grad():
        # a generator of a GPU would ask the driver for it
        monkeypatch.setattr(torch, "Generator", lambda device: SimpleNamespace(manual_seed=lambda seed: None))
        assert set(trainer.epoch_statistics()) == set(VALIDATED)
    assert gpu.products == {torch.float32}


class _OnTheHost(trainers.nnUNetTrainerCPS):
    def ssl_terms(self, step: Step):
        step.valid = step.valid & torch.ones(step.valid.shape[1:], dtype=torch.bool)
        return super().ssl_terms(step)


class _Waiting(trainers.nnUNetTrainerCPS):
    def ssl_terms(self, step: Step):
        step.record(valid=float(step.valid[step.valid].sum()))
        step.valid = step.valid.cpu().to(step.valid.device)
        return super().ssl_terms(step)


def test_it_sees_a_tensor_on_another_device(start, on_gpu):
    with pytest.raises(FakeTensorDeviceMismatchError):
        _step(start(_OnTheHost, "2d_tiny"), on_gpu)


def test_it_sees_a_wait(start, on_gpu):
    trainer = start(_Waiting, "2d_tiny")
    seen = _step(trainer, on_gpu)
    assert seen.gpu.waits == {"value": _reads_of_nnunet(trainer) + 1, "selection": 1, "copy": 2}


def test_it_sees_contrast_in_half_precision(start, on_gpu, monkeypatch):
    monkeypatch.setattr(high_quality, "at_least_float32", lambda x: x.half())
    assert torch.float16 in _step(start(trainers.nnUNetTrainerCPS_HqCL, "2d_tiny"), on_gpu).gpu.products
