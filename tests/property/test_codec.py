"""Values survive: whatever pickle can carry, and arrays of every kind, come back equal and shared as they were."""

from __future__ import annotations

import array
import collections
import datetime as dt
import enum
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from manycore._memory import codec


class Color(enum.Enum):
    RED = 1
    GREEN = "g"


class Point(NamedTuple):
    x: Any
    y: Any


class Record:
    """Compared by content."""

    def __init__(self, content: Any) -> None:
        self.content = content


class Text(str):
    __slots__ = ()


class Bag(dict[Any, Any]):
    pass


def same(one: Any, other: Any) -> bool:  # noqa: PLR0911
    """Equal in type and content; NaN equals NaN, and -0.0 is not 0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return np.float64(one).tobytes() == np.float64(other).tobytes() or (math.isnan(one) and math.isnan(other))
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, np.ndarray):
        if one.dtype != other.dtype or one.shape != other.shape or one.flags.writeable != other.flags.writeable:
            return False
        if one.dtype.hasobject:
            return all(map(same, one.ravel().tolist(), other.ravel().tolist()))
        return bool(one.tobytes() == other.tobytes())
    if isinstance(one, np.generic):
        return bool(one.dtype == other.dtype and one.tobytes() == other.tobytes())
    if isinstance(one, memoryview):
        return (one.format, one.shape, one.readonly, one.tobytes()) == (
            other.format, other.shape, other.readonly, other.tobytes()
        )  # fmt: skip
    if isinstance(one, (list, tuple, collections.deque)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(map(repr, one)) == list(map(repr, other)) and all(map(same, one.values(), other.values()))
    if isinstance(one, Record):
        return same(one.content, other.content)
    if isinstance(one, array.array):
        return bool(one.typecode == other.typecode and one.tobytes() == other.tobytes())
    return bool(one == other)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary()
    | st.binary().map(bytearray) | st.dates() | st.datetimes() | st.timedeltas() | st.decimals(allow_nan=False)
    | st.fractions() | st.uuids() | st.sampled_from([*Color, int, len, same, ..., NotImplemented, range(3)])
    | st.text().map(Text) | st.just(dt.UTC)
)  # fmt: skip
hashable = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.sampled_from(Color)
dtypes = hnp.array_dtypes() | hnp.scalar_dtypes() | hnp.nested_dtypes()


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """An array of any dtype, order, stride, writable or not; sometimes past the size that goes out of band."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
    made = draw(hnp.arrays(draw(dtypes), shape)).copy(order=draw(st.sampled_from("CF")))
    if draw(st.integers(0, 9)) == 0:
        made = np.resize(made, (draw(st.sampled_from([8191, 8193, 20_000])), *made.shape[1:])) if made.size else made
    if made.ndim and draw(st.booleans()):
        made = made[tuple(slice(None, None, draw(st.sampled_from([1, 2, -1]))) for _ in made.shape)]
    if draw(st.booleans()):
        made.flags.writeable = False
    return made


object_arrays = st.lists(hashable, max_size=5).map(lambda items: np.array([*items, None], dtype=object)[:-1])
memoryviews: st.SearchStrategy[Any] = st.binary(max_size=64).map(lambda data: memoryview(bytearray(data)))
memoryviews |= st.binary(max_size=64).map(lambda data: memoryview(data))
typed_arrays = st.builds(array.array, st.sampled_from("bBhHiIlLqQ"), st.lists(st.integers(0, 127)))
leaves = scalars | arrays() | object_arrays | memoryviews | typed_arrays


def containers(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.lists(parts, max_size=5) | st.lists(parts, max_size=5).map(tuple)
        | st.dictionaries(hashable, parts, max_size=5)
        | st.frozensets(hashable, max_size=5) | st.sets(hashable, max_size=5) | parts.map(Record)
        | st.builds(Point, parts, parts) | st.lists(parts, max_size=5).map(collections.deque)
        | st.dictionaries(st.text(), parts, max_size=3).map(collections.OrderedDict)
        | st.dictionaries(st.text(), parts, max_size=3).map(Bag)
    )  # fmt: skip


values = st.recursive(leaves, containers, max_leaves=20)


def through(value: Any, *, out_of_band: bool) -> Any:
    if not out_of_band:
        return codec.loads(codec.dumps(value))
    buffers: list[memoryview] = []
    data = codec.dumps(value, buffers=buffers)
    return codec.loads(memoryview(data), buffers=[bytearray(buffer) for buffer in buffers])


@given(values, st.booleans())
@settings(max_examples=400)
def test_values_survive(value: Any, out_of_band: bool) -> None:
    assert same(through(value, out_of_band=out_of_band), value)


@given(st.lists(leaves, min_size=1, max_size=4), st.lists(st.integers(0, 3), max_size=8), st.booleans())
def test_what_was_shared_stays_shared(parts: list[Any], choices: list[int], out_of_band: bool) -> None:
    boxed = [Record(part) for part in parts]
    value = [pair for choice in choices for pair in (boxed[choice % len(parts)], parts[choice % len(parts)])]
    result = through((value, value), out_of_band=out_of_band)
    assert result[0] is result[1]
    assert list(_shape(result[0])) == list(_shape(value))


def _shape(value: list[Any]) -> Iterator[tuple[int, int]]:
    """Which places of a list hold one mutable object; immutable ones may be one or two."""
    for i, one in enumerate(value):
        for j, other in enumerate(value):
            if one is other and isinstance(one, (Record, np.ndarray, bytearray, array.array)):
                yield i, j


@given(values)
def test_a_value_may_contain_itself(part: Any) -> None:
    value: list[Any] = [part, Record(None)]
    value.append(value)
    value[1].content = value
    result = through(value, out_of_band=True)
    assert result[2] is result
    assert result[1].content is result
    assert same(result[0], part)


@given(values)
def test_a_closure_carries_any_value(value: Any) -> None:
    result = codec.load_function(codec.dump_function(lambda: value))()
    assert same(result, value)
