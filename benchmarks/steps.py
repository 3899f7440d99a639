"""A training step of each method against another's (1, 2), and the contrast against that with a dense head (3)."""

from __future__ import annotations

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from benchmarks.compare import Comparison, compare
from benchmarks.sizes import Size
from benchmarks.synthetic import empty_folders, labeled_batch, num_views, start_trainer, with_full_queue
from nnunet_dvcl import trainers
from nnunet_dvcl.trainers import (
    nnUNetTrainerCPS,
    nnUNetTrainerCPS_SameView,
    nnUNetTrainerDVCL_SameView,
    nnUNetTrainerSupervised,
)
from nnunet_dvcl.trainers.base import SignedDistances
from nnunet_dvcl.trainers.base.step import Step

METHODS = tuple(
    name
    for name in trainers.__all__
    if issubclass(getattr(trainers, name), trainers.nnUNetTrainerSSL)
    and name != "nnUNetTrainerSSL"
    and not name.endswith("_Paper")  # the paper's protocol, not a method: without deep supervision
)


def dvcl_over_cps(size: Size, device: torch.device, repeats: int) -> Comparison:
    """1. What HqCL and DVCL add to a step of the twin networks."""
    with empty_folders():
        dvcl = with_full_queue(start_trainer(nnUNetTrainerDVCL_SameView, size, device))
        cps = start_trainer(nnUNetTrainerCPS_SameView, size, device)
        batch = labeled_batch(size, size.batch_size, _scales(dvcl))
        return compare(
            "step of DVCL / step of CPS",
            ("DVCL", lambda: dvcl.train_step(batch)),
            ("CPS", lambda: cps.train_step(batch)),
            target=1.05 if device.type == "cuda" else 1.10,
            repeats=repeats,
            device=device,
            size=size.name,
        )


def method_over_supervised(name: str, size: Size, device: torch.device, repeats: int) -> Comparison:
    """A step of one of our trainers, and of supervised training on as many patches."""
    trainer_class = getattr(trainers, name)
    with empty_folders():
        method = start_trainer(trainer_class, size, device)
        if "queue" in method.memory:
            method = with_full_queue(method)
        both = 2 * size.batch_size
        supervised = start_trainer(nnUNetTrainerSupervised, size, device, batch_size=both)
        labeled = labeled_batch(size, size.batch_size, _scales(method), num_views(method))
        all_labeled = labeled_batch(size, both, _scales(method))
        all_labeled["target"].pop()  # the valid voxels
        if isinstance(method, SignedDistances):  # the loader's workers make them
            labeled["target"].append(torch.rand(size.batch_size, method.labels.num_foreground, *size.patch_size))
        comparison = compare(
            f"step of {name} / step of nnUNetTrainerSupervised, as many patches",
            (name, lambda: method.train_step(labeled)),
            ("supervised", lambda: supervised.train_step(all_labeled)),
            target=1.15 * trainer_class.passes.steps,
            repeats=repeats,
            device=device,
            size=size.name,
        )
    comparison.notes["passes"] = trainer_class.passes.steps
    return comparison


def cps_over_twice_nnunet(size: Size, device: torch.device, repeats: int) -> Comparison:
    """2. Whether the twin networks do any work twice."""
    with empty_folders():
        cps = start_trainer(nnUNetTrainerCPS_SameView, size, device)
        both = 2 * size.batch_size
        stock = start_trainer(nnUNetTrainer, size, device, batch_size=both)
        labeled = labeled_batch(size, size.batch_size, _scales(cps))
        all_labeled = labeled_batch(size, both, _scales(cps))

        def two_steps() -> None:
            stock.train_step(all_labeled)
            stock.train_step(all_labeled)

        return compare(
            "step of CPS / 2 steps of nnUNetTrainer at batch B_l + B_u",
            ("CPS", lambda: cps.train_step(labeled)),
            ("2 x nnUNetTrainer", two_steps),
            target=1.05,
            repeats=repeats,
            device=device,
            size=size.name,
        )


def weak_strong_over_same_view(size: Size, device: torch.device, repeats: int) -> Comparison:
    """What pseudo-labels of a weak view cost: two runs without gradient, mixing, nnU-Net's loss on each level."""
    with empty_folders():
        weak_strong = start_trainer(nnUNetTrainerCPS, size, device, views="weak_strong")
        same = start_trainer(nnUNetTrainerCPS_SameView, size, device)
        scales = _scales(same)
        two, one = (labeled_batch(size, size.batch_size, scales, views) for views in (2, 1))
        return compare(
            "step of CPS with weak and strong views / in one view",
            ("weak and strong", lambda: weak_strong.train_step(two)),
            ("same view", lambda: same.train_step(one)),
            target=1.30,
            repeats=repeats,
            device=device,
            size=size.name,
        )


def sequential_over_joint(size: Size, device: torch.device, repeats: int) -> Comparison:
    """Time and memory of ``ssl.sequential_twins``; the memory target is 0.6."""
    with empty_folders():
        joint = with_full_queue(start_trainer(nnUNetTrainerDVCL_SameView, size, device))
        sequential = with_full_queue(start_trainer(nnUNetTrainerDVCL_SameView, size, device, sequential_twins=True))
        batch = labeled_batch(size, size.batch_size, _scales(joint))
        return compare(
            "step of DVCL with sequential_twins / without (memory <= 0.6)",
            ("sequential", lambda: sequential.train_step(batch)),
            ("joint", lambda: joint.train_step(batch)),
            target=1.35,
            repeats=repeats,
            device=device,
            size=size.name,
        )


class _DenseHead(nnUNetTrainerDVCL_SameView):
    """Projects every voxel and takes the rows of the drawn ones after, as methods with a convolutional head do."""

    def ssl_terms(self, step: Step):
        self.dense: dict[str, Tensor] = {}
        return super().ssl_terms(step)

    def project(self, name: str, volume: Tensor, index: Tensor) -> Tensor:
        """The same values as the sampled projection."""
        if name not in self.dense:
            self.dense[name] = self.companions[f"head_{name}"](volume.float().movedim(1, -1)).flatten(0, -2)
        return self.dense[name][index]


def contrast_over_dense_head(size: Size, device: torch.device, repeats: int) -> Comparison:
    """3. Drawing, projecting, scoring and the gradients at features and logits, sampled first against dense."""
    with empty_folders():
        contrasts = {
            "sampled": _contrast(with_full_queue(start_trainer(nnUNetTrainerDVCL_SameView, size, device)), size),
            "dense": _contrast(with_full_queue(start_trainer(_DenseHead, size, device)), size),
        }
        torch.manual_seed(0)
        sampled = contrasts["sampled"]()
        torch.manual_seed(0)
        dense = contrasts["dense"]()
        result = compare(
            "contrast, voxels sampled before the head / after a dense head",
            ("sampled", contrasts["sampled"]),
            ("dense", contrasts["dense"]),
            target=0.1,
            repeats=repeats,
            warmup=1,
            device=device,
            size=size.name,
        )
    result.notes["largest difference of a term"] = max(abs(sampled[term] - dense[term]) for term in sampled)
    return result


def _contrast(trainer, size: Size):
    """The contrastive terms on kept outputs of the networks, and their gradients: a function without arguments."""
    step = kept_step(trainer, size)
    trainer.after_forward(step)
    voxels = {name: trainer._select(step, name) for name in trainer.student_names}
    leaves = {name: v.features.detach().requires_grad_() for name, v in voxels.items()}
    voxels = {name: v._replace(features=leaves[name]) for name, v in voxels.items()}

    def contrast() -> dict[str, float]:
        for leaf in (*leaves.values(), *step.logits.values()):
            leaf.grad = None
        if isinstance(trainer, _DenseHead):
            trainer.dense = {}
        terms = trainer.contrastive_terms(step, voxels)
        sum(term.weight * term.value for term in terms.values()).backward()
        return {name: term.value.item() for name, term in terms.items()}

    return contrast


def kept_step(trainer, size: Size) -> Step:
    """One forward of both networks; its outputs are leaves, so that what follows is all that is measured."""
    labeled = labeled_batch(size, size.batch_size, _scales(trainer))
    unlabeled = next(trainer.dataloader_unlabeled)
    image = torch.cat((labeled["data"], unlabeled["data"])).to(trainer.device)
    with torch.no_grad():
        logits = {name: network(image)[0] for name, network in trainer.students().items()}
    return Step(
        image=image,
        target=trainer.labels.of_target(labeled["target"][0].to(trainer.device)),
        valid=(unlabeled["target"][:, 0] >= 0).to(trainer.device),
        progress=0.0,
        labels=trainer.labels,
        outputs={name: output.detach().requires_grad_() for name, output in logits.items()},
    )


def _scales(trainer) -> list[tuple[float, ...]]:
    return trainer._get_deep_supervision_scales()
