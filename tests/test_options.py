"""Values that a user writes: what is refused, and in which words."""

from typing import Annotated

import pytest
from pydantic import AfterValidator, BeforeValidator, Field

from nnunet_dvcl.errors import UserError
from nnunet_dvcl.options import (
    Count,
    CountFrom0,
    Flag,
    Number,
    Options,
    Positive,
    Share,
    Text,
    Weight,
    choice,
    did_you_mean,
    different,
    expected,
    is_allowed,
    one_or_more,
    option,
    or_null,
    read,
    refused,
    words_of,
)


class Inner(Options):
    size: Count
    names: tuple[Text, ...] = ()


def _even(value: object) -> object:
    if not isinstance(value, int) or value % 2:
        raise expected("an even number")
    return value


def _no_x(value: dict) -> dict:
    if "x" in value:
        raise refused("has x: leave it out.")
    return value


class Outer(Options):
    count: Count = 1
    seed: or_null(CountFrom0) = None
    rate: Positive = 0.1
    weight: Weight = 0.5
    share: Share = 1.0
    alpha: Number = 0.0
    flag: Flag = True
    kind: choice("sgd", "adamw") = "sgd"
    pair: option(int, "1 or 2", ge=1, le=2) = 1
    even: Annotated[int, BeforeValidator(_even)] = 2
    inner: Inner | None = None
    listed: tuple[Inner, ...] = ()
    sizes: one_or_more(Count) = (1,)
    seeds: different(CountFrom0) = (0,)
    named: Annotated[dict[Text, Count], AfterValidator(_no_x)] = Field({}, alias="by")
    origin: str = Field("", exclude=True)


def message(values: object, where: str = "") -> str:
    with pytest.raises(UserError) as error:
        Outer.read(values, where)
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        *(("count", value, "a whole number of at least 1") for value in (0, -1, True, 2.0, "2", None)),
        *(("seed", value, "a whole number of at least 0 or null") for value in (-1, False, 0.5)),
        *(("rate", value, "a number above 0") for value in (0, -1.0, float("inf"), float("nan"), True, "1", 10**400)),
        *(("weight", value, "a number of at least 0") for value in (-0.1, float("inf"), [1])),
        *(("share", value, "a number in [0, 1]") for value in (-0.1, 1.1, float("nan"))),
        *(("alpha", value, "a number") for value in (float("inf"), "0", False)),
        *(("flag", value, "true or false") for value in (0, 1, "true", None)),
        *(("kind", value, 'one of "sgd", "adamw"') for value in ("SGD", 1, ["sgd"])),
        *(("pair", value, "1 or 2") for value in (0, 3, True)),
        ("even", 3, "an even number"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(key, value, words):
    assert message({key: value}, "ssl") == f"ssl.{key} is {value!r}, expected {words}."
    assert not is_allowed(Outer.model_fields[key], value)


def test_right_values_are_taken_as_they_are():
    values = {"count": 10**400, "seed": 0, "rate": 1, "share": 0, "flag": False, "kind": "adamw", "even": 4}
    read = Outer.read(values)
    assert {key: getattr(read, key) for key in values} == values
    assert all(is_allowed(Outer.model_fields[key], value) for key, value in values.items())
    assert Outer.read({"seed": None}).seed is None


def test_a_place_inside_is_named():
    assert message({"inner": {"size": 0}}) == "inner.size is 0, expected a whole number of at least 1."
    assert message({"listed": [{"size": 1}, {"size": 0}]}, "x").startswith("x.listed[1].size is 0")
    assert message({"inner": {"size": 1, "names": ["a", 2]}}) == "inner.names[1] is 2, expected text."


def test_what_is_no_mapping_is_said():
    expected_words = "expected a mapping, 'key: value' in each line."
    assert message(3, "ssl") == f"ssl is 3, {expected_words}"
    assert message({"listed": ["a"]}) == f"listed[0] is 'a', {expected_words}"


def test_unknown_and_missing_keys():
    assert message({"cuont": 1}, "ssl").startswith("Unknown key ssl.cuont. Did you mean ssl.count?\nKnown keys here: c")
    unknown = message({"inner": {"size": 1, "nmaes": []}})
    assert unknown == "Unknown key inner.nmaes. Did you mean inner.names?\nKnown keys here: size, names."
    assert message({"inner": {}}) == "The key inner.size is missing."
    assert did_you_mean("xyz", ["count"]) == ""


def test_an_unknown_key_is_told_before_one_that_is_missing():
    assert message({"inner": {"szie": 1}}).startswith("Unknown key inner.szie. Did you mean inner.size?")
    assert message({"origin": "x"}).startswith("Unknown key origin.\nKnown keys here: count, ")
    assert message({"named": {}}).endswith("listed, sizes, seeds, by.")


def test_one_value_or_a_list():
    read_values = Outer.read({"sizes": [2, 2], "seeds": 3})
    assert (read_values.sizes, read_values.seeds) == ((2, 2), (3,))
    assert message({"seeds": [1, 2, 1]}) == "seeds has 1 twice."
    assert message({"sizes": []}) == "sizes is [], expected at least one entry."
    assert message({"sizes": 0}) == "sizes[0] is 0, expected a whole number of at least 1."


def test_a_mapping_with_any_keys():
    assert Outer.read({"by": {"a": 1}}).named == {"a": 1}
    assert message({"by": 1}) == "by is 1, expected a mapping, 'key: value' in each line."
    assert message({"by": {"a": 0}}) == "by.a is 0, expected a whole number of at least 1."
    assert message({"by": {1: 1}}, "ssl") == "the key 1 of ssl.by is 1, expected text."
    assert message({"by": {"x": 1}}) == "by has x: leave it out."


def test_a_type_alone():
    assert read(one_or_more(Text), ["a"], "--names") == ("a",)
    with pytest.raises(UserError, match=r"--names\[1\] is 2, expected text\."):
        read(one_or_more(Text), ["a", 2], "--names")


def test_words_of_types_and_fields():
    assert words_of(Outer.model_fields["seed"]) == "a whole number of at least 0 or null"
    assert words_of(Share) == "a number in [0, 1]"
