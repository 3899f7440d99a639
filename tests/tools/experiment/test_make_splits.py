"""Splits: disjoint, by group, nested, the same everywhere, with every class where it must be."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.split.draw import group_by, make_splits

CLASSES = ("liver", "spleen", "gland")
everywhere = {f"case_{i:02}": CLASSES for i in range(40)}


def lists(fold):
    return fold["train"], fold["val"], fold["unlabeled"]


def classes_of(cases, case_classes):
    return {name for case in cases for name in case_classes[case]}


@st.composite
def datasets(draw):
    """Case -> classes, case -> patient; each class occurs in a good part of the cases."""
    number = draw(st.integers(12, 30))
    sizes = draw(st.lists(st.integers(1, 3), min_size=number, max_size=number))
    patients = [p for p, size in enumerate(sizes) for _ in range(size)]
    groups = {f"p{p}_scan{i}": f"p{p}" for i, p in enumerate(patients)}
    some = st.sets(st.sampled_from(CLASSES[1:]))
    return {case: {CLASSES[0]} | draw(some) for case in groups}, groups


arguments = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1000),
        "num_folds": st.integers(2, 5),
        "test": st.sampled_from([0.0, 0.2, 0.4]),
        "stratify": st.booleans(),
    }
)


def split_or_skip(*args, **kwargs):
    """Of drawn data sets, some cannot be divided as wanted; that the reason is given is another test."""
    try:
        return make_splits(*args, **kwargs)
    except UserError:
        assume(False)


@settings(max_examples=60, deadline=None)
@given(datasets(), arguments, st.sampled_from([0.3, 0.6, 1.0]), st.sampled_from([None, 0, 2]))
def test_lists_are_disjoint_groups_stay_together_and_every_class_is_labeled(dataset, kwargs, labeled, unlabeled):
    cases, groups = dataset
    splits = split_or_skip(cases, CLASSES, labeled=labeled, unlabeled=unlabeled, groups=groups, **kwargs)
    assert len(splits.folds) == kwargs["num_folds"]
    assert bool(splits.test) == bool(kwargs["test"])
    assert len(splits.test) <= round(kwargs["test"] * len(cases))
    for fold in splits.folds:
        together = [*splits.test, *(case for part in lists(fold) for case in part)]
        assert len(together) == len(set(together))
        if unlabeled is None:
            assert set(together) == set(cases)
        else:
            assert len(fold["unlabeled"]) <= unlabeled
        assert fold["val"]
        trained = len(cases) - len(splits.test) - len(fold["val"])
        assert 1 <= len(fold["train"]) <= max(1, round(labeled * trained))
        assert classes_of(fold["train"], cases) == set(CLASSES)
        patients = [{groups[case] for case in part} for part in (splits.test, *lists(fold))]
        assert not any(a & b for a, b in combinations(patients, 2))
        assert all(part == sorted(part) for part in (splits.test, *lists(fold)))
    assert Counter(case for fold in splits.folds for case in fold["val"]) == Counter(set(cases) - set(splits.test))


@settings(max_examples=40, deadline=None)
@given(datasets(), arguments, st.integers(4, 8), st.integers(1, 4))
def test_fewer_are_part_of_more(dataset, kwargs, count, more):
    cases, groups = dataset
    small = split_or_skip(cases, CLASSES, count=count, groups=groups, **kwargs)
    large = split_or_skip(cases, CLASSES, count=count + more, groups=groups, **kwargs)
    few = split_or_skip(cases, CLASSES, count=count, unlabeled=2, groups=groups, **kwargs)
    many = split_or_skip(cases, CLASSES, count=count, unlabeled=4, groups=groups, **kwargs)
    assert small.test == large.test
    for a, b, c, d in zip(small.folds, large.folds, few.folds, many.folds, strict=True):
        assert set(a["train"]) <= set(b["train"])
        assert a["val"] == b["val"]
        assert a["train"] == c["train"] == d["train"]
        assert set(c["unlabeled"]) <= set(d["unlabeled"]) <= set(a["unlabeled"])


@settings(max_examples=30, deadline=None)
@given(datasets(), arguments)
def test_the_order_in_which_cases_are_listed_does_not_matter(dataset, kwargs):
    cases, groups = dataset
    splits = split_or_skip(cases, CLASSES, labeled=0.5, groups=groups, **kwargs)
    turned = {case: list(cases[case]) for case in reversed(cases)}
    assert splits == make_splits(turned, CLASSES[::-1], labeled=0.5, groups=groups, **kwargs)


def test_the_numbers_are_those_that_are_asked_for():
    splits = make_splits(everywhere, CLASSES, labeled=0.1, test=0.25, num_folds=3)
    assert len(splits.test) == 10
    assert [[len(part) for part in lists(fold)] for fold in splits.folds] == [[2, 10, 18]] * 3
    protocol = make_splits(everywhere, CLASSES, count=7, unlabeled=11, num_folds=4)
    assert [[len(part) for part in lists(fold)] for fold in protocol.folds] == [[7, 10, 11]] * 4


def test_another_seed_is_another_split():
    splits = [make_splits(everywhere, CLASSES, count=9, test=0.2, seed=seed) for seed in range(2)]
    assert splits[0].test != splits[1].test
    assert splits[0].folds[0] != splits[1].folds[0]


def test_folds_label_different_cases_in_the_same_order():
    """A case that is labeled in one fold is labeled in every fold that trains on it, as far as room is."""
    folds = make_splits(everywhere, CLASSES, count=8).folds
    for fold, other in combinations(folds, 2):
        shared = set(fold["train"]) & set(other["train"])
        assert len(shared) >= 4


def test_golden():
    """Frozen: a change of the draw would silently change everyone's splits."""
    cases = {f"p{i // 2}_{i % 2}": ("liver", "spleen")[: 1 + (i % 3 == 0)] for i in range(16)}
    plain = make_splits(cases, ("liver", "spleen"), count=2, test=0.25, num_folds=2, seed=3)
    assert plain.test == ["p0_1", "p1_0", "p5_0", "p7_0"]
    assert plain.folds == [
        {
            "train": ["p0_0", "p3_1"],
            "val": ["p1_1", "p3_0", "p4_0", "p5_1", "p6_1", "p7_1"],
            "unlabeled": ["p2_0", "p2_1", "p4_1", "p6_0"],
        },
        {
            "train": ["p3_0", "p6_1"],
            "val": ["p0_0", "p2_0", "p2_1", "p3_1", "p4_1", "p6_0"],
            "unlabeled": ["p1_1", "p4_0", "p5_1", "p7_1"],
        },
    ]
    grouped = make_splits(
        cases,
        ("liver", "spleen"),
        labeled=0.5,
        unlabeled=2,
        test=0.25,
        num_folds=3,
        groups=group_by(cases, r"^p\d+"),
        stratify=True,
    )
    assert grouped.test == ["p0_0", "p0_1", "p3_0", "p3_1"]
    assert grouped.folds == [
        {
            "train": ["p5_0", "p5_1", "p6_0", "p6_1"],
            "val": ["p1_0", "p1_1", "p7_0", "p7_1"],
            "unlabeled": ["p4_0", "p4_1"],
        },
        {
            "train": ["p1_0", "p1_1", "p6_0", "p6_1"],
            "val": ["p4_0", "p4_1", "p5_0", "p5_1"],
            "unlabeled": ["p2_0", "p2_1"],
        },
        {
            "train": ["p1_0", "p1_1", "p7_0", "p7_1"],
            "val": ["p2_0", "p2_1", "p6_0", "p6_1"],
            "unlabeled": ["p5_0", "p5_1"],
        },
    ]


# ---------------------------------------------------------------- classes


def rare(number, *, first=0):
    """Forty cases, of which `number` have the gland."""
    return {case: CLASSES if first <= i < first + number else CLASSES[:2] for i, case in enumerate(everywhere)}


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_class_is_labeled(seed):
    cases = rare(12)
    for fold in make_splits(cases, CLASSES, count=1, seed=seed).folds:
        assert classes_of(fold["train"], cases) == set(CLASSES)


def test_the_labeled_cases_are_the_first_of_the_draw_where_all_have_all_classes():
    """Nothing but the draw decides then, stratified or not: the classes must not bend it."""
    folds = [make_splits(everywhere, CLASSES, count=5, stratify=stratify).folds for stratify in (False, True)]
    nothing_expected = make_splits(everywhere, (), count=5).folds
    assert folds[0] == folds[1] == nothing_expected


def test_stratified_folds_and_labels_have_the_classes_equally_often():
    cases = {case: [c for c, step in zip(CLASSES, (1, 2, 5), strict=True) if i % step == 0]
             for i, case in enumerate(everywhere)}  # fmt: skip

    def spread(part_of, **kwargs):
        worst = 0
        for seed in range(6):
            splits = make_splits(cases, CLASSES, seed=seed, num_folds=4, stratify=True, **kwargs)
            for part in part_of(splits):
                for name in CLASSES:
                    share = sum(name in cases[case] for case in part) / len(part)
                    worst = max(worst, abs(share - sum(name in c for c in cases.values()) / len(cases)))
        return worst

    assert spread(lambda splits: [fold["val"] for fold in splits.folds], count=10) == 0
    assert spread(lambda splits: [fold["train"] for fold in splits.folds], count=10) <= 0.1
    assert spread(lambda splits: [splits.test], count=10, test=0.25) <= 0.1


def test_stratified_folds_spread_a_class_of_few_cases():
    cases = rare(5)
    for seed in range(10):
        splits = make_splits(cases, CLASSES, count=5, seed=seed, stratify=True)
        assert [sum("gland" in cases[case] for case in fold["val"]) for fold in splits.folds] == [1] * 5
    assert {len(fold["val"]) for fold in splits.folds} == {8}


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        (rare(0), r"No case has gland"),
        (rare(1), r"Fold \d: No training case has gland"),
        (
            {f"{name}{i}": [name] for name in CLASSES for i in range(10)},
            r"Fold 0: 2 labeled cases are too few to have \w+ beside .* at least 3 of the 24",
        ),
    ],
)
def test_a_class_that_cannot_be_labeled_is_named(cases, message):
    with pytest.raises(UserError, match=message):
        make_splits(cases, CLASSES, count=2)


# ---------------------------------------------------------------- groups


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"^[a-z]+\d+", {"anna1_a": "anna1", "anna1_b": "anna1", "bert2_a": "bert2"}),
        (r"^([a-z]+)\d", {"anna1_a": "anna", "anna1_b": "anna", "bert2_a": "bert"}),
        (r"^([a-z]+)(\d)", {"anna1_a": "anna/1", "anna1_b": "anna/1", "bert2_a": "bert/2"}),
        (r"_(a|b)", {"anna1_a": "a", "anna1_b": "b", "bert2_a": "a"}),
    ],
)
def test_groups_by_a_regular_expression(pattern, expected):
    assert group_by(["anna1_a", "anna1_b", "bert2_a"], pattern) == expected


def test_groups_that_are_not_found():
    with pytest.raises(UserError, match=r"(?s)finds no group in these cases:.*- bert") as error:
        group_by(["anna1", "bert"], r"\d")
    assert "anna1" not in str(error.value)
    with pytest.raises(UserError, match="is no regular expression"):
        group_by(["anna1"], "(")


def test_a_group_that_is_larger_than_the_count():
    cases = {f"p{i // 4}_{i}": CLASSES for i in range(40)}
    groups = group_by(cases, r"p\d")
    assert [len(fold["train"]) for fold in make_splits(cases, CLASSES, count=7, groups=groups).folds] == [4] * 5
    with pytest.raises(UserError, match="3 labeled cases are wanted, and the first group has 4"):
        make_splits(cases, CLASSES, count=3, groups=groups)
    with pytest.raises(UserError, match="no whole group of cases to test on"):
        make_splits(cases, CLASSES, count=4, groups=groups, test=0.05)


# ---------------------------------------------------------------- values out of their range


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "either the share of labeled cases or their count"),
        ({"labeled": 0.1, "count": 3}, "either the share of labeled cases or their count"),
        ({"labeled": 0}, "share of labeled cases is 0, expected above 0"),
        ({"labeled": 1.5}, "share of labeled cases is 1.5"),
        ({"labeled": float("nan")}, "share of labeled cases is nan"),
        ({"count": 0}, "count of labeled cases is 0"),
        ({"count": 33}, "Fold 0: 33 labeled cases are wanted, and there are 32 training cases"),
        ({"count": 30, "unlabeled": 3}, "Fold 0: 3 unlabeled cases are wanted, and 2 training cases"),
        ({"count": 3, "unlabeled": -1}, "count of unlabeled cases is -1"),
        ({"count": 3, "test": 1.0}, "share of test cases is 1.0"),
        ({"count": 3, "test": 0.001}, "no whole group"),
        ({"count": 3, "num_folds": 1}, "number of folds is 1"),
        ({"count": 3, "num_folds": 41}, "40 groups of cases for 41 folds"),
        ({"count": 3, "num_folds": 5, "test": 0.9}, "4 groups of cases for 5 folds"),
    ],
)
def test_values_that_cannot_be(kwargs, message):
    with pytest.raises(UserError, match=message):
        make_splits(everywhere, CLASSES, **kwargs)
