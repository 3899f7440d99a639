import pytest

from nnunet_dvcl.tools.model_folders import class_names, distinct_labels, find_folds


def test_classes_are_background_and_what_is_painted():
    assert class_names({"labels": {"background": 0, "b": 2, "a": 1, "ignore": 3}}) == ["background", "a", "b"]
    regions = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "seed": [3]}
    assert class_names({"labels": regions, "regions_class_order": [2, 1, 5]}) == ["background", "core", "whole", "seed"]
    assert class_names({"labels": regions, "regions_class_order": [1, 1, 3]}) == ["background", "core", "seed"]


def labels_of(*folders):
    return distinct_labels([fold for folder in folders for fold in find_folds(str(folder))])


def test_labels_say_what_differs(train):
    dvcl = train()
    assert labels_of(dvcl) == ["DVCL"]
    assert labels_of(dvcl, train("nnUNetTrainer")) == ["DVCL", "nnUNetTrainer"]
    assert labels_of(dvcl, train(configuration="2d")) == ["DVCL, 3d_fullres", "DVCL, 2d"]
    assert labels_of(dvcl, train("nnUNetTrainerCPS", plans="Mine")) == ["DVCL, nnUNetPlans", "CPS, Mine"]
    twin = train(dataset="Dataset502_Organs")
    assert labels_of(dvcl, twin) == [str(dvcl / "fold_0"), str(twin / "fold_0")]


def test_a_model_has_its_folds_with_a_checkpoint(train):
    model = train(fold="all")
    train(fold=1)
    (model / "fold_2").mkdir()
    assert labels_of(model) == ["DVCL, fold 1", "DVCL, fold all"]
    assert labels_of(model / "fold_all") == ["DVCL"]


def test_a_relative_folder(train, monkeypatch):
    monkeypatch.chdir(train() / "fold_0")
    (fold,) = find_folds(".")
    assert fold[1:] == ("nnUNetTrainerDVCL", "3d_fullres", "nnUNetPlans", "0")


@pytest.mark.parametrize("there", [("best",), ("best", "latest"), ("best", "latest", "final")])
def test_the_newest_checkpoint(train, there):
    for name in there:
        model = train(checkpoint=f"checkpoint_{name}.pth")
    (fold,) = find_folds(str(model))
    assert fold.newest_checkpoint() == str(model / f"fold_0/checkpoint_{there[-1]}.pth")
