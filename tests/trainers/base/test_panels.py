from nnunet_dvcl.trainers import nnUNetTrainerCPS, nnUNetTrainerDVCL
from nnunet_dvcl.trainers.base.panels import group, panels_of

PANELS = panels_of(nnUNetTrainerDVCL)

NEIGHBORHOODS = [
    "val_outsiders_differ",
    "val_neighbors_same",
    "val_neighbors_same_correct",
    "val_relevant_same",
    "val_ordinary_same",
    "val_outlier_neighbors_same",
    "val_outliers_wrong",
    "val_unreliable_wrong",
]


def titles(keys):
    return {panel.title: found for panel, found in group(keys, PANELS).items()}


def test_every_key_is_in_one_panel():
    keys = ["total", *reversed(NEIGHBORHOODS), "gradient_cps", "rampup", "threshold_B", "teacher", "gradient_teacher"]
    panels = group(keys, PANELS)
    assert sorted(key for found in panels.values() for key in found) == sorted(keys)


def test_neighborhoods_and_gradients_have_their_panels():
    assert titles([*reversed(NEIGHBORHOODS), "gradient_dvcl", "gradient_of_a_new_term", "dvcl"]) == {
        "loss terms": ["dvcl"],
        "neighborhoods of unreliable validation voxels [share]": NEIGHBORHOODS,
        "gradient of a term at the last decoder features [norm relative to the supervised one]": [
            "gradient_dvcl",
            "gradient_of_a_new_term",
        ],
    }


def test_gradients_alone_are_drawn_on_a_log_scale():
    panels = group(["cps", "rampup", "unreliable_A", "val_neighbors_same", "gradient_cps"], PANELS)
    assert [found for panel, found in panels.items() if panel.log_scale] == [["gradient_cps"]]


def test_a_key_that_several_trainings_logged_is_there_once():
    assert titles(["cps", "rampup", "cps", "rampup"]) == {
        "loss terms": ["cps"],
        "weight of the consistency terms": ["rampup"],
    }


def test_panels_of_one_title_are_one_and_belong_to_the_trainer():
    (shared,) = (panel for panel in PANELS if "agreement" in panel.keys)
    assert shared.keys == ("agreement", "unreliable_A", "unreliable_B")
    assert [panel.title for panel in panels_of(nnUNetTrainerCPS)] == [panel.title for panel in [*PANELS[:3], shared]]
    assert panels_of(nnUNetTrainerCPS, nnUNetTrainerDVCL) == PANELS == panels_of(nnUNetTrainerDVCL, nnUNetTrainerCPS)
