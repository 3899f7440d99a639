import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from nnunet_dvcl.cascade.previous_stage import next_stages
from nnunet_dvcl.commands import train_command
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.files import visible_files
from nnunet_dvcl.tools.configure import configure
from nnunet_dvcl.trainers.nnUNetTrainerDVCL import DVCLConfig


@pytest.fixture
def plans_file(tiny_dataset) -> Path:
    return tiny_dataset.preprocessed / "nnUNetPlans.json"


@pytest.fixture
def write(tiny_dataset, plans_file):
    """``write("batch_size=3", parent="3d_tiny", name="own")``: the configuration as it stands in the plans file."""

    def run(*assignments: str, parent: str = "3d_tiny", name: str = "own") -> dict:
        assert configure("901", parent, name, "nnUNetPlans", list(assignments)) == str(plans_file)
        return tiny_dataset.plans["configurations"][name]

    return run


@pytest.fixture
def refused(write, plans_file):
    """``refused(*assignments)``: the message; the plans file is as before; nothing but a hidden lock lies beside it."""

    def run(*assignments: str, **names: str) -> str:
        content, files = plans_file.read_bytes(), visible_files(plans_file.parent)
        with pytest.raises(UserError) as error:
            write(*assignments, **names)
        assert plans_file.read_bytes() == content
        assert visible_files(plans_file.parent) == files
        return str(error.value)

    return run


# ---------------------------------------------------------------- what is written


def test_only_what_was_asked_for_is_written(write):
    assert write("batch_size=3", "ssl.num_epochs=20", "ssl.initial_lr=0.003", "ssl.optimizer=adamw") == {
        "inherits_from": "3d_tiny",
        "batch_size": 3,
        "ssl": {"num_epochs": 20, "initial_lr": 0.003, "optimizer": "adamw"},
    }


def test_the_rest_of_the_plans_is_untouched(write, tiny_dataset):
    before = tiny_dataset.plans
    write("batch_size=3")
    after = tiny_dataset.plans
    del after["configurations"]["own"]
    assert after == before


def test_a_part_of_the_architecture_is_written_with_the_whole(write, tiny_dataset):
    """nnU-Net inherits shallowly: half an architecture would lose the other half."""
    parent = tiny_dataset.plans["configurations"]["3d_tiny"]["architecture"]
    features = {"features_per_stage": [2, 4, 6]}
    written = write("architecture.arch_kwargs.features_per_stage=[2, 4, 6]")["architecture"]
    assert written == {**parent, "arch_kwargs": {**parent["arch_kwargs"], **features}}


@pytest.mark.parametrize(("parent", "shape"), [("3d_tiny", (16, 32, 16)), ("2d_tiny", (16, 32))])
def test_nnunet_resolves_it_and_builds_the_network(write, tiny_dataset, parent, shape):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    patch_size = f"patch_size={list(shape)}"
    write(patch_size, "architecture.arch_kwargs.features_per_stage=[2, 4, 6]", "ssl.num_epochs=7", parent=parent)
    plans_manager, manager = tiny_dataset.managers("own")
    assert tuple(manager.patch_size) == shape
    assert manager.spacing == tiny_dataset.managers(parent)[1].spacing
    network = nnUNetTrainer.build_network_architecture(plans_manager, manager, 1, 3, False)
    assert network(torch.zeros(1, 1, *shape)).shape == (1, 3, *shape)
    assert network.decoder.seg_layers[-1].in_channels == 2
    assert DVCLConfig.from_plans(manager.configuration).num_epochs == 7


def test_two_levels_keep_the_values_of_the_first(write, tiny_dataset):
    write("ssl.num_epochs=7", "ssl.seed=3", "architecture.arch_kwargs.features_per_stage=[2, 4, 6]", name="first")
    write("ssl.num_epochs=9", "architecture.arch_kwargs.conv_bias=false", parent="first", name="second")
    resolved = tiny_dataset.managers("second")[1].configuration
    assert resolved["ssl"] == {"num_epochs": 9, "seed": 3}
    assert resolved["architecture"]["arch_kwargs"]["features_per_stage"] == [2, 4, 6]
    assert resolved["architecture"]["arch_kwargs"]["conv_bias"] is False
    assert tiny_dataset.plans["configurations"]["first"]["ssl"] == {"num_epochs": 7, "seed": 3}


def test_ssl_alone_is_inherited_whole(write, tiny_dataset):
    write("ssl.seed=3", name="first")
    write("batch_size=4", parent="first", name="second")
    assert tiny_dataset.managers("second")[1].configuration["ssl"] == {"seed": 3}


def test_writing_again_replaces(write, capsys):
    write("batch_size=3")
    assert "Wrote configuration own" in capsys.readouterr().out
    assert write("ssl.seed=1") == {"inherits_from": "3d_tiny", "ssl": {"seed": 1}}
    assert "Replaced configuration own" in capsys.readouterr().out


def test_what_changed_is_printed_and_nothing_else(write, capsys, plans_file):
    """Not the whole architecture, which is written with a part of it."""
    write("batch_size=9", "architecture.arch_kwargs.features_per_stage=[2, 4, 6]", "ssl.seed=1", "batch_size=3")
    assert capsys.readouterr().out.splitlines() == [
        f"Wrote configuration own in {plans_file}: 3d_tiny with",
        "  batch_size=3  (there 2)",
        "  architecture.arch_kwargs.features_per_stage=[2, 4, 6]  (there [4, 8, 16])",
        "  ssl.seed=1",
        f"Train with: {train_command('901', 'own', 0, 'nnUNetTrainerDVCL', 'nnUNetPlans')}",
    ]


@pytest.mark.parametrize("plans", ["nnUNetPlans", "OtherPlans"])
@pytest.mark.parametrize("gpu", [False, True])
def test_the_printed_command_trains_what_was_configured(
    write, plans_file, capsys, monkeypatch, nnunet_trains, plans, gpu
):
    """Plans of another name may have a configuration of this one too: it would be trained, silently."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    write("batch_size=3")
    plans_file.with_name("OtherPlans.json").write_text(plans_file.read_text())
    configure("901", "3d_tiny", "own", plans, ["batch_size=4"])
    line = capsys.readouterr().out.splitlines()[-1].removeprefix("Train with: ")
    trained = nnunet_trains(line)
    names = ("dataset_name_or_id", "configuration", "fold", "trainer_class_name", "plans_identifier")
    assert [trained[name] for name in names] == ["901", "own", "0", "nnUNetTrainerDVCL", plans]
    assert trained["device"] == torch.device("cuda" if gpu else "cpu")


def test_several_at_once_lose_nothing(tiny_dataset, plans_file):
    """Each writes the whole file: experiments on one data set are often started side by side."""
    names = [f"own_{i}" for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(configure, "901", "3d_tiny", name, "nnUNetPlans", ["batch_size=3"]) for name in names]
    assert {Path(job.result()) for job in jobs} == {plans_file}
    assert json.loads(plans_file.read_text())["configurations"].keys() >= set(names)


def test_null_and_text_are_values(write):
    written = write("ssl.seed=null", "ssl.unlabeled_batch_size=4", 'ssl.optimizer="adamw"', "data_identifier=mine")
    assert written["ssl"] == {"seed": None, "unlabeled_batch_size": 4, "optimizer": "adamw"}
    assert written["data_identifier"] == "mine"


def test_a_dataset_may_be_given_by_name(tiny_dataset, plans_file):
    assert configure(tiny_dataset.name, "3d_tiny", "own", "nnUNetPlans", ["batch_size=3"]) == str(plans_file)


def test_other_plans_are_found_by_their_identifier(tiny_dataset, plans_file):
    other = plans_file.with_name("OtherPlans.json")
    other.write_text(plans_file.read_text())
    before = plans_file.read_bytes()
    assert configure("901", "3d_tiny", "own", "OtherPlans", ["batch_size=3"]) == str(other)
    assert plans_file.read_bytes() == before


def test_a_cascade_of_ones_own(write, tiny_dataset):
    """From any configuration; the pair is what nnU-Net asks for: each names the other."""
    lowres = ["spacing=[2.0, 2.0, 2.0]", "data_identifier=nnUNetPlans_own_lowres"]
    written = write("next_stage=own_cascade", *lowres, name="own_lowres")
    assert written["next_stage"] == "own_cascade"
    assert write("previous_stage=own_lowres", "ssl.num_epochs=3", name="own_cascade") == {
        "inherits_from": "3d_tiny",
        "previous_stage": "own_lowres",
        "ssl": {"num_epochs": 3},
    }
    plans_manager, cascade = tiny_dataset.managers("own_cascade")
    assert cascade.previous_stage_name == "own_lowres"
    assert plans_manager.get_configuration("own_lowres").next_stage_names == ["own_cascade"]
    assert next_stages(plans_manager, "own_lowres") == ["own_cascade"]


def test_several_next_stages_or_none(write, tiny_dataset):
    write('next_stage=["first", "second"]', name="lowres")
    write("previous_stage=lowres", name="first")
    write("previous_stage=lowres", "batch_size=1", name="second")
    assert next_stages(tiny_dataset.managers("lowres")[0], "lowres") == ["first", "second"]
    assert write("next_stage=null", parent="lowres", name="alone")["next_stage"] is None
    assert next_stages(tiny_dataset.managers("alone")[0], "alone") == []


# ---------------------------------------------------------------- what is refused


def test_a_cascade_needs_a_previous_stage_that_names_it(refused, write):
    """Also one that is inherited: the predictions of 3d_lowres are for 3d_cascade_fullres alone."""
    assert "previous stage of own is gone, which the plans do not have" in refused("previous_stage=gone")
    assert "predicts nothing for it: the next stage of 3d_tiny is None" in refused("previous_stage=3d_tiny")
    write("next_stage=cascade", name="lowres")
    write("previous_stage=lowres", name="cascade")
    message = refused("batch_size=1", parent="cascade", name="own_cascade")
    assert "the next stage of lowres is cascade" in message
    assert "nnunet_dvcl configure ... -c lowres --name NAME next_stage=own_cascade" in message


@pytest.mark.parametrize(
    "assignment", ["next_stage=3", "next_stage=[]", "next_stage=[3]", 'previous_stage=["a"]', "previous_stage=true"]
)
def test_a_stage_is_a_name(refused, assignment):
    assert "expected the name of a configuration" in refused(assignment)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("batchsize=3", "Unknown key batchsize."),
        ("architecture.arch_kwargs.features=3", "Unknown key architecture.arch_kwargs.features."),
        ("architecture=3", "Unknown key architecture."),
        ("inherits_from=2d", "Unknown key inherits_from."),
        ("ssl=3", "Unknown key ssl."),
        ("ssl.num_epoch=3", "Did you mean ssl.num_epochs?"),
        ("batch_size=two", "batch_size is 'two', expected the type of its present value 2"),
        ("batch_size=2.5", "batch_size is 2.5"),
        ("batch_size=true", "batch_size is True"),
        ("batch_size=0", "batch_size is 0, expected the type of its present value 2, numbers above 0"),
        ("patch_size=16", "patch_size is 16, expected the type of its present value [16, 16, 16]"),
        ("ssl.num_epochs=0", "ssl.num_epochs is 0, expected a whole number of at least 1"),
        ("ssl.initial_lr=fast", "ssl.initial_lr is 'fast', expected a number above 0"),
        ("patch_size=[16, 16, 18]", "expected multiples of the network's total strides [4, 4, 4]"),
        ("patch_size=[16, 16]", "expected one number an axis of patch_size = [16, 16] in each stage"),
        ("patch_size=[16, 16, 0]", "patch_size is [16, 16, 0]"),
        ("architecture.arch_kwargs.features_per_stage=[2, 4]", "features_per_stage has 2 entries, expected 3"),
        ("architecture.arch_kwargs.strides=[[1, 1, 1]]", "strides has 1 entries, expected 3"),
        ("architecture.arch_kwargs.n_conv_per_stage_decoder=[1, 1, 1]", "has 3 entries, expected 2"),
        ("architecture.arch_kwargs.n_stages=4", "entries, expected 4"),
        ("spacing=[1, 1, 2]", "data_identifier=NAME"),
        ("normalization_schemes=[]", "data_identifier=NAME"),
        ("resampling_fn_data=other", "data_identifier=NAME"),
        ("batch_size", "'batch_size' is no assignment"),
        ("=3", "'=3' is no assignment"),
    ],
)
def test_an_impossible_assignment_is_refused(refused, assignment, message):
    assert message in refused(assignment)


@pytest.mark.parametrize(
    "assignment",
    [
        'patch_size=["a", "b", "c"]',
        "patch_size=[16.0, 16, 16]",
        "patch_size=[[16], 16, 16]",
        "patch_size=[true, 16, 16]",
        "patch_size=[null, 16, 16]",
        "architecture.arch_kwargs.strides=[1, 2, 2]",
        'architecture.arch_kwargs.strides=["a", "b", "c"]',
        "architecture.arch_kwargs.strides=[[1, 1, 1], [2, 2], [2, 2, 2]]",
        "architecture.arch_kwargs.strides=[[1, 1], [2, 2], [2, 2]]",
        "architecture.arch_kwargs.strides=[[0, 1, 1], [2, 2, 2], [2, 2, 2]]",
        "architecture.arch_kwargs.kernel_sizes=[[3, 3], [3, 3], [3, 3]]",
        'architecture.arch_kwargs.features_per_stage=["a", 4, 6]',
        "architecture.arch_kwargs.features_per_stage=[0, 4, 6]",
        "architecture.arch_kwargs.n_stages=0",
        "ssl.=3",
        "ssl.num_epochs=",
        "ssl.num_epochs=NaN",
    ],
)
def test_nothing_but_a_user_error_comes_of_nonsense(refused, assignment):
    assert refused(assignment)


def test_a_value_of_the_parent_is_checked_with_ours(refused, write):
    write("ssl.num_queries=100", "ssl.queue_capacity=200", name="first")
    assert "ssl.num_epochs is 0" in refused("ssl.num_epochs=0", parent="first", name="second")


@pytest.mark.parametrize("name", ["a__b", "a/b", "../a", "", ".hidden", "-d", "a b", "größe"])
def test_names_that_make_no_folder(refused, name):
    assert "is no name for a configuration" in refused("batch_size=3", name=name)


@pytest.mark.parametrize("name", ["2d", "3d_fullres"])
def test_nnunets_own_configurations_are_not_replaced(refused, name):
    assert f"{name} is one of nnU-Net's own" in refused("batch_size=3", name=name)


def test_cycles(refused, write):
    write("batch_size=3", name="first")
    write("batch_size=4", parent="first", name="second")
    assert "own inherits from own" in (write("batch_size=3"), refused("batch_size=3", parent="own"))[1]
    assert "second inherits from first" in refused("batch_size=5", parent="second", name="first")


def test_an_unknown_parent_lists_what_there_is(refused):
    message = refused("batch_size=3", parent="4d")
    assert "no configuration 4d" in message
    assert "3d_tiny" in message


def test_preprocessing_keys_come_with_a_folder_of_their_own(write):
    written = write("spacing=[1, 1.0, 2.0]", "data_identifier=nnUNetPlans_thick")
    assert written["spacing"] == [1.0, 1.0, 2.0]
    assert written["data_identifier"] == "nnUNetPlans_thick"


def test_a_folder_of_preprocessed_cases_has_one_spacing(write, refused):
    write("spacing=[1, 1.0, 2.0]", "data_identifier=nnUNetPlans_thick", name="thick")
    write("spacing=[1, 1, 2]", "data_identifier=nnUNetPlans_thick", "batch_size=3", name="thick_too")
    message = refused("spacing=[1, 1, 3]", "data_identifier=nnUNetPlans_thick", name="thicker")
    assert "thicker and thick have the same data_identifier, nnUNetPlans_thick" in message
    assert "spacing is [1, 1, 3] and [1, 1.0, 2.0]. Give thicker another data_identifier" in message
    message = refused("spacing=[1, 1, 3]", "data_identifier=nnUNetPlans_3d_fullres", name="thicker")
    assert "spacing is [1, 1, 3] and [1.0, 1.0, 1.0]" in message


def test_how_predictions_are_resampled_is_not_of_the_preprocessed_cases(write):
    assert write("resampling_fn_probabilities_kwargs={}") == {
        "inherits_from": "3d_tiny",
        "resampling_fn_probabilities_kwargs": {},
    }


@pytest.mark.parametrize(
    ("dataset", "plans", "message"),
    [
        ("902", "nnUNetPlans", "No data set 902"),
        ("Dataset902_None", "nnUNetPlans", "Dataset902_None"),
        ("tiny", "nnUNetPlans", "tiny"),
        ("901", "OtherPlans", r"OtherPlans\.json does not exist"),
    ],
)
def test_what_is_missing_is_named(tiny_dataset, dataset, plans, message):
    with pytest.raises(UserError, match=message):
        configure(dataset, "3d_tiny", "own", plans, ["batch_size=3"])


def test_an_unset_variable_is_named(tiny_dataset, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(UserError, match="variable nnUNet_preprocessed is not set"):
        configure("901", "3d_tiny", "own", "nnUNetPlans", ["batch_size=3"])


# ---------------------------------------------------------------- the file


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_killed_while_writing_keeps_the_old_plans(write, plans_file, monkeypatch, moment):
    before = plans_file.read_bytes()

    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, moment, dies)
        with pytest.raises(KeyboardInterrupt):
            write("batch_size=3")
    assert plans_file.read_bytes() == before
    assert write("batch_size=3")["batch_size"] == 3
    assert not list(plans_file.parent.glob("*.partial"))


def test_the_command_line(tiny_dataset, warm):
    command = warm("nnunet_dvcl", "configure", "-d", "901", "-c", "3d_tiny", "--name", "own")
    options = {"capture_output": True, "text": True, "cwd": Path(__file__).parents[2]}
    done = subprocess.run([*command, "batch_size=3", "ssl.num_epochs=20"], **options, check=True)
    assert "ssl.num_epochs=20" in done.stdout
    assert json.loads((tiny_dataset.preprocessed / "nnUNetPlans.json").read_text())["configurations"]["own"]
    failed = subprocess.run([*command, "batch_sise=3"], **options)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-2].startswith("Error: Unknown key batch_sise.")
    assert "Traceback" not in failed.stderr


def test_nothing_to_change(refused):
    assert "Nothing to change" in refused()


def test_a_preset_for_another_number_of_axes(refused):
    from nnunet_dvcl.tools.trainer_classes import preset_assignments

    assert "patch_size is [64, 128, 128], expected 2 numbers" in refused(*preset_assignments("paper"), parent="2d")
