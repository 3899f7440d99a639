"""A loss that is not finite: the step changes nothing, is counted and told, and too many in a row end the training."""

import math
import multiprocessing
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.networks import full_resolution, unwrap
from nnunet_dvcl.trainers import nnUNetTrainerDVCL, nnUNetTrainerSupervised
from nnunet_dvcl.trainers.base import nnUNetTrainerPlugin
from nnunet_dvcl.trainers.base.update import update

TRAINERS = (nnUNetTrainerSupervised, nnUNetTrainerDVCL)


def _weights(trainer) -> dict[str, torch.Tensor]:
    """Of all networks, and the optimizer's slots; flat."""
    state = {f"A.{k}": v for k, v in unwrap(trainer.network).state_dict().items()}
    if isinstance(trainer, nnUNetTrainerDVCL):
        state |= {f"companions.{k}": v for k, v in trainer.companions.state_dict().items()}
    for i, slots in trainer.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in slots.items()}
    return {key: value.clone() for key, value in state.items()}


def _changed(before: dict[str, torch.Tensor], trainer) -> list[str]:
    after = _weights(trainer)
    assert before.keys() == after.keys()
    return [key for key, value in before.items() if not torch.equal(value, after[key])]


class Spoiled:
    """A loader whose next batches are spoiled while `value` is one."""

    def __init__(self, loader):
        self.loader, self.value, self.spoiled = loader, None, set()

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self.loader)
        if self.value is None:
            return batch
        self.spoiled.update(batch["keys"])
        return {**batch, "data": torch.full_like(batch["data"], self.value)}


@pytest.fixture
def spoil(start):
    """``spoil(TrainerClass, *streams)``: a trainer after a good step, and a switch for bad images in its streams."""

    def start_spoiled(trainer_class, *streams, **ssl):
        trainer = start(trainer_class, optimizer="adamw", **ssl)
        streams = [f"dataloader_{stream}" for stream in streams]
        for stream in streams:
            setattr(trainer, stream, Spoiled(getattr(trainer, stream)))
        assert trainer.train_step(next(trainer.dataloader_train))["skipped_steps"] == 0

        def switch(value):
            for stream in streams:
                getattr(trainer, stream).value = value

        return trainer, switch

    return start_spoiled


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("trainer_class", "streams", "value"),
    [
        (nnUNetTrainerSupervised, ("train",), math.nan),
        (nnUNetTrainerDVCL, ("train",), math.inf),
        (nnUNetTrainerDVCL, ("unlabeled",), math.nan),
        (nnUNetTrainerDVCL, ("train", "unlabeled"), math.nan),
    ],
)
def test_a_step_on_bad_images_changes_nothing(spoil, trainer_class, streams, value, scaled):
    trainer, switch = spoil(trainer_class, *streams)
    if scaled:
        trainer.grad_scaler = torch.amp.GradScaler("cpu")
    before = _weights(trainer)
    switch(value)
    output = trainer.train_step(next(trainer.dataloader_train))
    assert output["skipped_steps"] == 1
    assert not math.isfinite(output.get("total", output["loss"]))
    assert not _changed(before, trainer)
    if trainer_class is nnUNetTrainerDVCL:
        memory = trainer.memory.state_dict()
        assert all(v.isfinite().all() for v in memory.values())
        for name, rows in memory.items():  # what counts as filled holds a row
            assert name.endswith("cursor") or name.endswith("count") or rows.any(), name
    switch(None)
    for _ in range(2):
        output = trainer.train_step(next(trainer.dataloader_train))
    assert output["skipped_steps"] == 0
    assert len(_changed(before, trainer)) > len(before) / 2


def test_an_infinite_loss_with_finite_gradients_changes_nothing(spoil, monkeypatch):
    trainer, _ = spoil(nnUNetTrainerDVCL)
    before, loss = _weights(trainer), trainer.loss
    monkeypatch.setattr(trainer, "loss", lambda *args: loss(*args) + math.inf)
    assert trainer.train_step(next(trainer.dataloader_train))["skipped_steps"] == 1
    assert not _changed(before, trainer)


def test_an_epoch_is_told_by_its_good_steps(spoil):
    trainer, switch = spoil(nnUNetTrainerDVCL, "unlabeled")
    outputs = []
    for value in (None, math.nan, math.nan):
        switch(value)
        outputs.append(trainer.train_step(next(trainer.dataloader_train)))
    trainer.on_train_epoch_end(outputs)
    logging = trainer.logger.get_checkpoint()
    assert logging["ssl/skipped_steps"] == [2.0]
    for key in ("total", "cps", "dvcl", "supervised_B"):
        assert math.isfinite(logging[f"ssl/{key}"][0])
    assert logging["ssl/cps"] == [outputs[0]["cps"]]
    assert logging["ssl/dvcl"] == [outputs[0]["dvcl"]]  # the spoiled voxels are no queries: 0 in the skipped steps
    assert logging["train_losses"] == [outputs[0]["loss"]]
    (line,) = [line for line in Path(trainer.log_file).read_text().splitlines() if "steps were skipped" in line]
    assert "WARNING: 2 of 3 steps were skipped" in line
    terms, cases = line.rstrip(". ").partition("was not finite: ")[2].split(". Cases: ")
    assert {"cps", "total"} <= set(terms.split(", "))
    assert cases.split(", ") == sorted(trainer.dataloader_unlabeled.spoiled), "those alone whose images are spoiled"
    assert "supervised_A" not in line

    trainer.current_epoch = 1
    switch(None)
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train))])
    assert logging["ssl/skipped_steps"] == [2.0, 0.0]
    assert Path(trainer.log_file).read_text().count("steps were skipped") == 1

    trainer.current_epoch = 2
    trainer.count_step(1.0, {"cps": math.inf})
    trainer.on_train_epoch_end([{**outputs[0], "skipped_steps": 1.0}, outputs[0]])
    assert "WARNING: 1 of 2 steps were skipped, because the loss was not finite: cps." in (
        Path(trainer.log_file).read_text()
    )


def test_an_epoch_without_a_good_step(spoil):
    trainer, switch = spoil(nnUNetTrainerDVCL, "train", "unlabeled")
    switch(math.nan)
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train)) for _ in range(2)])
    logging = trainer.logger.get_checkpoint()
    assert math.isnan(logging["ssl/total"][0])
    assert math.isnan(logging["train_losses"][0])
    assert logging["ssl/skipped_steps"] == [2.0]


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_the_fiftieth_in_a_row_stops_the_training(start, trainer_class):
    trainer = start(trainer_class)
    for _ in range(2):
        for _ in range(49):
            trainer.count_step(1.0, {"cps": math.nan, "total": math.nan, "fine": 2.0})
        trainer.count_step(0.0, {"cps": 1.0})
    for _ in range(49):
        trainer.count_step(1.0, {"cps": math.nan, "total": math.inf, "fine": 2.0})
    folder = Path(trainer.output_folder)
    assert not list(folder.glob("*.pth"))
    with pytest.raises(UserError, match=r"50 steps in a row \(cps, total\).*checkpoint_latest\.pth is from before"):
        trainer.count_step(1.0, {"cps": math.nan})
    assert [file.name for file in folder.glob("checkpoint*")] == ["checkpoint_latest.pth"]


def test_without_checkpoints_nothing_is_said_to_be_saved(start):
    trainer = start(nnUNetTrainerSupervised)
    trainer.disable_checkpointing = True
    trainer.skipped.in_a_row = 49
    with pytest.raises(UserError, match="Nothing is saved"):
        trainer.count_step(1.0, {"loss": math.nan})
    assert not list(Path(trainer.output_folder).glob("*.pth"))


def test_stopped_training_goes_on_from_before(build_trainer, monkeypatch):
    """Bad images from the second step of the second epoch on; mended, the epoch begins anew."""
    monkeypatch.setattr(sys.modules[nnUNetTrainerPlugin.__module__], "MOST_SKIPPED_IN_A_ROW", 3)
    trainer = build_trainer(nnUNetTrainerDVCL, num_epochs=2, num_iterations_per_epoch=5)
    good_weights, steps, train_step = {}, [], trainer.train_step

    def step(batch):
        steps.append(trainer.current_epoch)
        if len(steps) == 7:
            good_weights.update(_weights(trainer))
        if len(steps) >= 7:
            batch = {**batch, "data": torch.full_like(batch["data"], math.nan)}
        return train_step(batch)

    monkeypatch.setattr(trainer, "train_step", step)
    with pytest.raises(UserError, match="not finite in 3 steps in a row"):
        trainer.run_training()
    assert steps == [0] * 5 + [1] * 4

    resumed = build_trainer(nnUNetTrainerDVCL, continue_training=True, num_epochs=2, num_iterations_per_epoch=5)
    resumed.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    assert not _changed(good_weights, resumed)
    assert (resumed.current_epoch, resumed.iteration) == (1, 5)
    resumed.run_training()
    logging = resumed.logger.get_checkpoint()
    assert {key: len(values) for key, values in logging.items()} == dict.fromkeys(logging, 2)
    assert all(math.isfinite(value) for value in logging["train_losses"])


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_gradients_that_are_not_finite_are_counted_and_told(start, trainer_class, scaled):
    """The square root of 0 has a value, but no finite gradient."""
    trainer = start(trainer_class)
    if scaled:
        trainer.grad_scaler = torch.amp.GradScaler("cpu")
    loss = trainer.loss
    trainer.loss = lambda output, target: loss(output, target) + (full_resolution(output) * 0).sum().sqrt() * 0
    before = _weights(trainer)
    outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(2)]
    assert [output["skipped_steps"] for output in outputs] == [1, 1]
    assert math.isfinite(outputs[0]["loss"])
    assert not _changed(before, trainer)
    trainer.on_train_epoch_end(outputs)
    assert (
        "WARNING: 2 of 2 steps were skipped, because gradients were not finite." in Path(trainer.log_file).read_text()
    )

    trainer.skipped.in_a_row = 49
    with pytest.raises(UserError, match=r"not finite in 50 steps in a row \(gradients\)"):
        trainer.train_step(next(trainer.dataloader_train))


# ---------------------------------------------------------------- the update alone


class Gradient(torch.autograd.Function):
    """Passes a value on, and answers with a gradient of one's own."""

    @staticmethod
    def forward(ctx, x, gradient):
        ctx.gradient = gradient
        return x.clone()

    @staticmethod
    def backward(ctx, _):
        return torch.tensor(ctx.gradient), None


@pytest.fixture
def one_weight():
    """``step(loss, gradient, scaler)`` of a weight of 1 under SGD with momentum: weight, and whether it was finite."""
    weight = nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([weight], 0.5, momentum=0.9)

    def step(loss: float, gradient: float, grad_scaler=None) -> tuple[float, bool]:
        optimizer.zero_grad()
        value = Gradient.apply(weight, gradient) * 0 + loss
        finite = update(value, optimizer, grad_scaler, lambda: nn.utils.clip_grad_norm_([weight], 12))
        return weight.item(), bool(finite)

    return step


@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu", init_scale=4.0)])
def test_what_is_finite_is_applied_and_what_is_not_is_not(one_weight, scaler):
    scale = 1.0 if scaler is None else 4.0
    assert one_weight(3.0, 0.5 * scale, scaler) == (0.75, True)
    for loss in (math.nan, math.inf, -math.inf):
        # not even momentum moves it
        assert one_weight(loss, math.nan, scaler) == (0.75, False)
    # nor do gradients that are not finite, though their loss is
    assert one_weight(3.0, math.inf, scaler) == (0.75, False)


def test_the_scale_is_halved_for_gradients_alone(one_weight):
    """Halved in each of many such steps it would end at 0, and with it every gradient."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    for _ in range(3):
        one_weight(math.nan, math.nan, scaler)
        assert scaler.get_scale() == 4.0
    one_weight(3.0, math.inf, scaler)
    assert scaler.get_scale() == 2.0
    for scale in (2.0, 4.0):
        one_weight(3.0, 0.1, scaler)
        assert scaler.get_scale() == scale


def _one_of_two(rank: int, file: str, results) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    weight = nn.Parameter(torch.tensor(1.0))
    seen = []
    for loss in (2.0, math.nan if rank else 2.0):
        finite = update(
            weight * loss, torch.optim.SGD([weight], 0.1), None, lambda: nn.utils.clip_grad_norm_([weight], 12)
        )
        seen.append((bool(finite), weight.item()))
        weight.grad = None
    results.put((rank, seen))
    distributed.destroy_process_group()


def test_all_processes_skip_or_none(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_one_of_two, args=(i, tmp_path / "store", results)) for i in range(2)]
    for process in processes:
        process.start()
    both = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    (first, second), other = both[0], both[1]
    assert [first, second] == other
    assert first == (True, pytest.approx(0.8))
    assert second == (False, first[1])
