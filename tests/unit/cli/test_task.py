"""The worker's side of `manycore map`: what JSON holds, and how what it does not hold is named."""

import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import json
import math
import pathlib
import pickle
import uuid

import numpy as np
import pytest

from manycore._cli.task import BadItem, Done, Target, Task, encode, find_unencodable


@dataclasses.dataclass
class Point:
    x: int
    y: object


class Colour(enum.Enum):
    RED = "red"


class Opaque:
    pass


def record(kind: str) -> object:
    values = {
        "good": {"n": 1},
        "nan": [1, {"loss": math.nan}],
        "opaque": Point(1, [Opaque()]),
        "name": "caf\udce9",
    }
    return values[kind]


def double(value: dict[str, int]) -> int:
    return value["n"] * 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Point(1, Point(2, None)), '{"x": 1, "y": {"x": 2, "y": null}}'),
        ({3, 1, 2}, "[1, 2, 3]"),
        (frozenset("a"), '["a"]'),
        (pathlib.Path("a/b"), '"a/b"'),
        (Colour.RED, '"red"'),
        (dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC), '"2026-01-02T03:04:00+00:00"'),
        (dt.date(2026, 1, 2), '"2026-01-02"'),
        (dt.timedelta(minutes=1.5), "90.0"),
        (decimal.Decimal("0.10"), '"0.10"'),
        (fractions.Fraction(1, 3), '"1/3"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (np.float32(0.5), "0.5"),
        (np.int64(3), "3"),
        (np.bool_(True), "true"),
        (np.arange(4).reshape(2, 2), "[[0, 1], [2, 3]]"),
        (np.datetime64("2026-01-02"), '"2026-01-02"'),
        ("über", '"über"'),
    ],
)
def test_what_json_holds(value: object, text: str) -> None:
    assert encode(value) == text


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (Opaque(), "the result is of type Opaque, which JSON cannot hold"),
        ({"a": [1, Opaque()]}, "the result['a'][1] is of type Opaque, which JSON cannot hold"),
        (Point(1, {2: b"x"}), "the result['y'][2] is of type bytes, which JSON cannot hold; return text, such as"),
        ([math.nan], "the result[0] is nan, which JSON cannot hold"),
        (np.array([1.0, -math.inf]), "the result[1] is -inf, which JSON cannot hold"),
        ({(1, 2): 3}, "the result has a key of type tuple; keys of JSON objects are strings"),
        (iter([]), "the result is of type list_iterator"),
    ],
)
def test_what_json_does_not_hold_is_named(value: object, complaint: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode(value)
    assert find_unencodable(value).startswith(complaint)


def test_a_value_that_contains_itself_is_named() -> None:
    value: list[object] = []
    value.append(value)
    assert "contains itself" in find_unencodable(value)


def call(name: str, item: object, *, is_json: bool = False) -> Done:
    made = pickle.loads(pickle.dumps(Task(Target(__name__, name, None), is_json=is_json)))
    return Done.unpack(made(item))


def test_a_result_becomes_the_rest_of_a_line() -> None:
    done = call("record", "good")
    assert done.text == b'"item": "good", "result": {"n": 1}}\n'
    assert done.cpu_seconds >= 0


def test_a_result_that_json_cannot_hold_comes_back_as_a_reason() -> None:
    done = call("record", "nan")
    assert done.text is None
    assert (done.kind, done.reason) == ("NotJSON", "the result[1]['loss'] is nan, which JSON cannot hold")
    assert "['y'][0] is of type Opaque" in call("record", "opaque").reason


def test_text_that_is_not_unicode_is_escaped() -> None:
    done = call("record", "name")
    assert done.text is not None
    assert json.loads(b"{" + done.text) == {"item": "name", "result": "caf\udce9"}


def test_a_json_item_is_parsed_and_shown_as_it_came() -> None:
    assert call("double", '{"n":  2}', is_json=True).text == b'"item": {"n":  2}, "result": 4}\n'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON: Expecting property name"),
        ('{"n": NaN}', "not JSON: NaN is not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_json_item_comes_back_as_a_reason(text: str, reason: str) -> None:
    done = call("double", text, is_json=True)
    assert done.kind == "InputError"
    assert done.reason.startswith(reason)


def test_a_bad_item_never_reaches_the_function() -> None:
    done = call("double", BadItem("x", "cannot read it"))
    assert (done.text, done.kind, done.reason) == (None, "InputError", "cannot read it")
