import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.trainers.base import SSLConfig, TrainingConfig
from nnunet_dvcl.trainers.base.config import check_ssl, known_options
from nnunet_dvcl.trainers.nnUNetTrainerCPS import CPSConfig
from nnunet_dvcl.trainers.nnUNetTrainerDVCL import DVCLConfig
from nnunet_dvcl.trainers.nnUNetTrainerDVCL_SameView import CPSSameViewConfig, DVCLSameViewConfig

TRAINING = {
    "optimizer": "sgd",
    "initial_lr": 0.01,
    "num_epochs": 1000,
    "num_iterations_per_epoch": 250,
    "num_val_iterations_per_epoch": 50,
    "seed": None,
    "mirroring": True,
}
SSL = TRAINING | {
    "unlabeled_batch_size": None,
    "consistency_weight": 0.1,
    "rampup_fraction": 1.0,
    "unlabeled_folder": True,
    "skip_bad_scans": False,
    "ignored_as_unlabeled": True,
    "sequential_twins": False,
}
PAPER = {
    "views": "same",
    "cutmix_probability": 0.0,
    "pseudo_label_loss": "ce",
    "consistency_weight": 0.1,
    "consistency_start": 0.0,
    "rampup_fraction": 1.0,
}
FULL_WEIGHT = {
    "views": "same",
    "cutmix_probability": 0.5,
    "pseudo_label_loss": "nnunet",
    "consistency_weight": 1.0,
    "consistency_start": 0.05,
    "rampup_fraction": 0.15,
}
CPS = SSL | {"independent_intensities": False} | FULL_WEIGHT
DVCL = CPS | {
    "contrastive_weight": 0.1,
    "distance_weight": 0.3,
    "contrastive_start": 0.0,
    "contrastive_rampup_fraction": 0.0,
    "entropy_alpha": 0.5,
    "feature_dim": 64,
    "num_anchors": 256,
    "num_negatives": 50,
    "temperature": 1.0,
    "bank_capacity": 4096,
    "num_queries": 512,
    "queue_capacity": 8192,
    "num_neighbors": 5,
    "num_outsiders": 5,
    "outlier_neighbors": 50,
    "ordinary_affinity": 0.5,
    "validation_voxels": 8192,
}
FROM_0 = ["seed", "validation_voxels"]  # whole numbers, 0 allowed
WHOLE = [
    *sorted(key for key, value in DVCL.items() if type(value) is int and key not in FROM_0),
    "unlabeled_batch_size",
]
REAL = sorted(key for key, value in DVCL.items() if type(value) is float)
SHARES = [
    *("rampup_fraction", "consistency_start", "cutmix_probability"),
    *("contrastive_start", "contrastive_rampup_fraction", "ordinary_affinity"),
]
WEIGHTS = ["consistency_weight", "contrastive_weight", "distance_weight"]


def from_ssl(ssl, config: type[TrainingConfig] = DVCLConfig) -> TrainingConfig:
    return config.from_plans({"batch_size": 2, "ssl": ssl})


@pytest.mark.parametrize(
    ("config", "defaults"),
    [
        (TrainingConfig, TRAINING),
        (SSLConfig, SSL),
        (CPSConfig, CPS),
        (DVCLConfig, DVCL),
        (CPSSameViewConfig, CPS | PAPER),
        (DVCLSameViewConfig, DVCL | PAPER),
    ],
)
def test_the_defaults_are_nnunets_ours_and_the_papers(config, defaults):
    assert config().model_dump() == config.from_plans({"batch_size": 2}).model_dump() == defaults
    assert {key: type(value) for key, value in config().model_dump().items()} == {
        k: type(v) for k, v in defaults.items()
    }


def test_every_key_can_be_overridden():
    other = {key: value * 0.5 if key in REAL else 100 for key, value in DVCL.items() if key != "optimizer"}
    other |= {
        "optimizer": "adamw",
        "mirroring": False,
        "queue_capacity": 200,
        "views": "same",
        "cutmix_probability": 0.0,
        "pseudo_label_loss": "ce",
        "independent_intensities": True,
        "sequential_twins": True,
        "unlabeled_folder": False,
        "skip_bad_scans": True,
        "ignored_as_unlabeled": False,
    }
    assert from_ssl(other).model_dump() == other


@pytest.mark.parametrize("ssl", [{}, {"views": "weak_strong", "cutmix_probability": 0.0}])
def test_intensities_of_their_own_are_for_one_view(ssl):
    with pytest.raises(UserError, match=r"To use it, set ssl\.views=\"same\" and ssl\.cutmix_probability=0"):
        from_ssl(ssl | {"independent_intensities": True})


def test_a_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        DVCLConfig().num_epochs = 3


def test_every_option_is_known():
    assert known_options().keys() >= DVCLConfig.model_fields.keys() == DVCL.keys()


@pytest.mark.parametrize(
    ("key", "meant"), [("num_epoch", "num_epochs"), ("temprature", "temperature"), ("unlabelled_batch_size", None)]
)
def test_an_unknown_key_is_named_with_the_key_that_was_meant(key, meant):
    with pytest.raises(UserError) as error:
        from_ssl({key: 3})
    assert f"Unknown key ssl.{key} (value 3)" in str(error.value)
    assert f"Did you mean ssl.{meant or 'unlabeled_batch_size'}?" in str(error.value)


def test_an_unknown_key_like_no_other_lists_what_there_is():
    with pytest.raises(UserError) as error:
        from_ssl({"xyz": 3})
    assert "Did you mean" not in str(error.value)
    assert all(key in str(error.value) for key in DVCL)


@pytest.mark.parametrize("config", [TrainingConfig, SSLConfig, DVCLConfig])
def test_keys_of_another_trainer_are_accepted_and_still_checked(config):
    assert from_ssl({"num_neighbors": 7, "num_epochs": 3}, config).num_epochs == 3
    with pytest.raises(UserError, match=r"ssl\.num_neighbors is 0, expected a whole number of at least 1"):
        from_ssl({"num_neighbors": 0}, config)


@pytest.mark.parametrize("key", WHOLE)
@pytest.mark.parametrize("value", [True, False, 2.0, "2", [2], {}, 0, -1])
def test_whole_numbers(key, value):
    with pytest.raises(UserError) as error:
        from_ssl({key: value})
    assert f"ssl.{key} is {value!r}, expected a whole number of at least 1" in str(error.value)


@pytest.mark.parametrize("key", FROM_0)
@pytest.mark.parametrize("value", [True, False, 2.0, "2", [2], {}, -1])
def test_whole_numbers_from_0(key, value):
    assert getattr(from_ssl({key: 0}), key) == 0
    with pytest.raises(UserError) as error:
        from_ssl({key: value})
    assert f"ssl.{key} is {value!r}, expected a whole number of at least 0" in str(error.value)


@pytest.mark.parametrize(
    "key",
    ["independent_intensities", "sequential_twins", "unlabeled_folder", "skip_bad_scans", "ignored_as_unlabeled"],
)
@pytest.mark.parametrize("value", [0, 1, 2.0, "true", None, [True], {}])
def test_true_or_false(key, value):
    one_view = {"views": "same", "cutmix_probability": 0}
    assert [getattr(from_ssl(one_view | {key: flag}), key) for flag in (True, False)] == [True, False]
    with pytest.raises(UserError) as error:
        from_ssl({key: value})
    assert f"ssl.{key} is {value!r}, expected true or false" in str(error.value)


@pytest.mark.parametrize("key", REAL)
@pytest.mark.parametrize("value", [True, "0.1", [0.1], {}, float("nan"), float("inf"), float("-inf")])
def test_numbers(key, value):
    with pytest.raises(UserError) as error:
        from_ssl({key: value})
    assert f"ssl.{key} is {value!r}, expected a number" in str(error.value)


def test_a_whole_number_is_a_number():
    assert from_ssl({key: 1 for key in REAL}).initial_lr == 1


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        *((key, value, "a number in [0, 1]") for key in SHARES for value in (-0.01, 1.01)),
        *((key, -0.01, "a number of at least 0") for key in WEIGHTS),
        *((key, value, "a number above 0") for key in ("initial_lr", "temperature") for value in (0, -1.0)),
        *(("optimizer", value, 'one of "sgd", "adamw"') for value in ("SGD", "adam", 1, ["sgd"])),
        ("views", "weak", 'one of "same", "weak_strong"'),
        ("pseudo_label_loss", "dice", 'one of "ce", "nnunet"'),
        *(("seed", value, "a whole number of at least 0 or null") for value in (-1, 0.5, False, "0")),
    ],
)
def test_what_is_allowed_is_said(key, value, allowed):
    with pytest.raises(UserError) as error:
        from_ssl({key: value})
    assert f"ssl.{key} is {value!r}, expected {allowed}." in str(error.value)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in SHARES for value in (0, 1)] + [("seed", 0)])
def test_limits_are_allowed(key, value):
    assert from_ssl({key: value}).model_dump()[key] == value


def test_entropy_alpha_may_be_negative():
    assert from_ssl({"entropy_alpha": -1.5}).entropy_alpha == -1.5


@pytest.mark.parametrize("key", sorted(DVCL))
def test_null_is_for_optional_keys_alone(key):
    if DVCL[key] is None:
        assert from_ssl({key: None}).model_dump()[key] is None
    else:
        with pytest.raises(UserError, match=rf"ssl\.{key} is None, expected"):
            from_ssl({key: None})


@pytest.mark.parametrize("ssl", [None, [], "num_epochs", 3, [["num_epochs", 3]]])
def test_anything_but_an_object_is_refused(ssl):
    with pytest.raises(UserError, match='The key "ssl" of the plans holds'):
        from_ssl(ssl)


def test_the_queue_holds_the_queries_of_both_networks():
    assert from_ssl({"queue_capacity": 200, "num_queries": 100})
    with pytest.raises(UserError, match=r"queue_capacity is 199, expected at least 2 \* ssl\.num_queries = 200"):
        from_ssl({"queue_capacity": 199, "num_queries": 100})


def test_outliers_are_found_among_no_fewer_than_the_neighbors():
    assert from_ssl({"outlier_neighbors": 7, "num_neighbors": 7})
    with pytest.raises(UserError, match=r"outlier_neighbors is 6, expected at least ssl\.num_neighbors = 7"):
        from_ssl({"outlier_neighbors": 6, "num_neighbors": 7})


def test_values_built_by_hand_are_checked_too():
    with pytest.raises(UserError, match=r"ssl\.num_epochs is 0"):
        DVCLConfig(num_epochs=0)


def test_differences_are_lines():
    saved = DVCLConfig(num_neighbors=3).model_dump()
    assert DVCLConfig(num_neighbors=3).differences(saved) == []
    assert DVCLConfig(num_neighbors=3, skip_bad_scans=True).differences(saved) == []
    assert DVCLConfig(seed=1).differences(saved) == [
        "ssl.num_neighbors: 3 there, 5 here",
        "ssl.seed: None there, 1 here",
    ]
    del saved["temperature"]
    saved |= {"num_neighbors": 5, "long_gone": 1}
    assert DVCLConfig().differences(saved) == [
        "ssl.long_gone: 1 there, (absent) here",
        "ssl.temperature: (absent) there, 1.0 here",
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(DVCL)) | st.text(), JSON, max_size=6) | JSON)
@example({"num_epochs": 10**400})
@example({"initial_lr": 10**400})
@example({"entropy_alpha": -(10**400)})
def test_any_json_gives_a_config_or_a_user_error(ssl):
    ssl = json.loads(json.dumps(ssl))
    try:
        config = from_ssl(ssl)
    except UserError:
        return
    check_ssl(ssl)
    assert config.model_dump() == DVCL | ssl
