import json

import pytest

from nnunet_dvcl.data.splits import check_scans_have_no_label, validation_cases, withheld_cases
from nnunet_dvcl.errors import UserError

LABELED = ["a", "b", "c", "d"]
GOOD = {"train": ["a"], "val": ["b"], "unlabeled": ["d", "c"]}


@pytest.fixture
def withheld(tmp_path):
    def read(*splits, fold=0):
        file = tmp_path / "splits_final.json"
        file.write_text(json.dumps(splits))
        return withheld_cases(str(file), fold, LABELED)

    return read


def test_withheld_cases_of_the_fold(withheld):
    assert withheld({"train": ["a"], "val": ["b"]}, GOOD, fold=1) == ["c", "d"]
    assert withheld({"train": ["a"], "val": ["b"]}, GOOD, fold=0) == []


def test_nothing_withheld_where_nnunet_does_not_use_the_file(withheld, tmp_path):
    assert withheld(GOOD, fold="all") == []
    assert withheld(GOOD, fold=1) == []
    assert withheld_cases(str(tmp_path / "none.json"), 0, LABELED) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unlabeled": "c"}, '"unlabeled" must be a list'),
        ({"unlabeled": [1]}, '"unlabeled" must be a list'),
        ({"train": None}, '"train" must be a list'),
        ({"unlabeled": ["a"]}, 'a: is in "unlabeled" and in "train"'),
        ({"unlabeled": ["b"]}, 'b: is in "unlabeled" and in "val"'),
        ({"unlabeled": ["x"]}, 'x: in "unlabeled", but not among the 4 preprocessed'),
        ({"train": ["x"]}, 'x: in "train", but not among'),
        ({"val": ["x"]}, 'x: in "val", but not among'),
        ({"unlabelled": ["c"]}, '"unlabelled" is not a key; did you mean "unlabeled"'),
    ],
)
def test_bad_fold(withheld, change, message):
    with pytest.raises(UserError, match=r"Fold 0 of .*splits_final\.json") as error:
        withheld({**GOOD, **change})
    assert message in str(error.value)


def test_only_the_wanted_fold_is_checked(withheld):
    assert withheld(GOOD, {"train": ["x"]}) == ["c", "d"]


def test_fold_without_train(withheld):
    with pytest.raises(UserError, match='"train" is missing'):
        withheld({"val": ["b"]})


@pytest.mark.parametrize("content", ["{", '{"train": []}', "[[]]"])
def test_malformed_file(tmp_path, content):
    file = tmp_path / "splits_final.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"splits_final\.json"):
        withheld_cases(str(file), 0, LABELED)


def test_scan_that_is_labeled_too():
    check_scans_have_no_label(["x", "y"], LABELED, "imagesTr_unlabeled")
    with pytest.raises(UserError, match=r"1 case.*imagesTr_unlabeled") as error:
        check_scans_have_no_label(["x", "b"], LABELED, "imagesTr_unlabeled")
    assert "- b\n" in str(error.value)


def test_validation_cases(tmp_path):
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps([GOOD, {"train": ["a"], "val": ["d", "c"]}, {"train": ["a"]}]))
    assert validation_cases(str(file), 0, LABELED) == ["b"]
    assert validation_cases(str(file), "1", LABELED) == ["c", "d"]
    assert validation_cases(str(file), "all", {"d", "a"}) == ["a", "d"], "as nnU-Net, which validates on all of them"
    with pytest.raises(UserError, match=r'(?s)Fold 2 of .*"val" is missing'):
        validation_cases(str(file), 2, LABELED)
    for missing in (str(file), str(tmp_path / "none.json")):
        with pytest.raises(UserError, match=r"has no fold 3.*name some cases"):
            validation_cases(missing, 3, LABELED)
