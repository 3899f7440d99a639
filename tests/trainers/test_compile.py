"""torch.compile, which nnU-Net uses on a GPU by default, here with a backend that runs on the CPU."""

from functools import partial

import pytest
import torch
from torch._dynamo import OptimizedModule
from torch._dynamo.utils import counters

from nnunet_dvcl import trainers
from nnunet_dvcl.trainers import nnUNetTrainerDVCL


def test_compiled_training_keeps_features_and_plain_checkpoints(build_trainer, monkeypatch, tmp_path):
    monkeypatch.setattr(nnUNetTrainerDVCL, "_do_i_compile", lambda self: True)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    trainer = build_trainer(nnUNetTrainerDVCL, "2d_tiny")
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    assert all(isinstance(network, OptimizedModule) for network in trainer.students().values())
    for _ in range(2):
        output = trainer.train_step(next(trainer.dataloader_train))
        assert output["hqcl"] > 0
        assert output["dvcl"] != 0
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        trainer.validation_step(next(trainer.dataloader_val))

    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    checkpoint = torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    keys = [*checkpoint["network_weights"], *checkpoint["ssl_state"]["companions"]["B"]]
    assert not any("_orig_mod" in key for key in keys)
    trainer.load_checkpoint(str(tmp_path / "checkpoint.pth"))


ONE_VIEW = {"views": "same", "cutmix_probability": 0.0}
OPTIONS = {
    "as it is": {},
    "sequential_twins": {"sequential_twins": True},
    "one view": ONE_VIEW,
    "one view, sequential_twins": ONE_VIEW | {"sequential_twins": True},
    "independent_intensities": ONE_VIEW | {"independent_intensities": True},
}


@pytest.mark.parametrize(
    ("configuration", "options"), [("3d_tiny", "as it is"), *(("2d_tiny", options) for options in OPTIONS)]
)
def test_networks_are_one_graph_and_compiled_once(start, monkeypatch, configuration, options):
    """The step's weights are those of an eager step: a compiled network takes the gradient of gathered rows too.

    The backend divides each graph into forward and backward, as that of a GPU does.
    """
    trained = []
    for compiled in (True, False):
        torch._dynamo.reset()
        counters.clear()
        monkeypatch.setattr(nnUNetTrainerDVCL, "_do_i_compile", lambda self, compiled=compiled: compiled)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
            trainer = start(nnUNetTrainerDVCL, configuration, initial_lr=0.001, **OPTIONS[options])
        batch = next(trainer.dataloader_train)
        torch.manual_seed(1)
        trainer.train_step(batch)
        graphs = counters["stats"]["unique_graphs"]
        trainer.train_step(batch)
        assert counters["stats"]["unique_graphs"] == graphs
        assert (graphs > 0) == compiled
        assert not any(tap._features is not None for tap in trainer.taps.values()), "a tap holds what nobody asks for"
        trained.append([p.detach().clone() for network in trainer.students().values() for p in network.parameters()])
    torch.testing.assert_close(*trained, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["UAMT", "SASSNet", "CLD", "MagicNet", "U2PL", "CCL", "UGPCL", "BaCon"])
def test_networks_of_other_methods_are_compiled_once(start, monkeypatch, name):
    """A teacher, dropout and a head that hang on layers; the second step runs the graphs of the first."""
    torch._dynamo.reset()
    counters.clear()
    trainer_class = getattr(trainers, f"nnUNetTrainer{name}")
    monkeypatch.setattr(trainer_class, "_do_i_compile", lambda self: True)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
        trainer = start(trainer_class, "2d_tiny", contrastive_start=0.0)
    batch = next(trainer.dataloader_train)
    outputs, graphs = [], []
    for _ in range(2):
        outputs.append(trainer.train_step(batch))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0
    for term in trainer.reaches:
        assert all(output[term] > 0 for output in outputs), term


def test_each_batch_size_has_one_static_graph(start, monkeypatch):
    """Training, pseudo-labels and validation have batches of their own sizes; a second epoch compiles nothing."""
    dynamic = []

    def backend(graph, inputs):
        dynamic.append(any(isinstance(x, torch.SymInt) for x in inputs))
        return graph

    torch._dynamo.reset()
    monkeypatch.setattr(torch._dynamo.config, "automatic_dynamic_shapes", True)  # torch's default
    monkeypatch.setattr(
        torch._dynamo.config, "fail_on_recompile_limit_hit", True
    )  # torch would go on without compiling
    monkeypatch.setattr(nnUNetTrainerDVCL, "_do_i_compile", lambda self: True)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend=backend))
        trainer = start(nnUNetTrainerDVCL, "2d_tiny", unlabeled_batch_size=3)
    compiled = []
    for _ in range(2):
        trainer.on_train_epoch_start()
        for _ in range(2):
            trainer.train_step(next(trainer.dataloader_train))
        with torch.no_grad():
            trainer.on_validation_epoch_start()
            trainer.validation_step(next(trainer.dataloader_val))
        compiled.append(len(dynamic))
    assert compiled[0] == compiled[1] > 0
    assert not any(dynamic)
