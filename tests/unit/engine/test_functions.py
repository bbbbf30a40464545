"""The function table: what does not change is sent once."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from typing import Any

import pytest

import manycore
from manycore._engine import frames
from manycore._engine.functions import KEPT, FunctionTable, name_of
from manycore._engine.spool import Spool, read_exactly
from manycore._memory import codec


@pytest.fixture
def spool() -> Iterator[Spool]:
    made = Spool()
    yield made
    made.close()


def load(spool: Spool, place: Any) -> Any:
    return codec.load_function(read_exactly(spool.fd, place.length, place.offset))


def test_an_importable_function_is_sent_once(spool: Spool) -> None:
    table = FunctionTable(spool)
    assert table.get(operator.add) is table.get(operator.add)
    assert load(spool, table.get(operator.add).place) is operator.add


def test_the_way_a_chunk_is_called_is_part_of_it(spool: Spool) -> None:
    table = FunctionTable(spool)
    plain, star = table.get(operator.add), table.get(operator.add, frames.CHUNK | frames.STAR)
    assert (plain.flags, star.flags) == (frames.CHUNK, frames.CHUNK | frames.STAR)
    assert plain.place is star.place


def test_a_closure_is_sent_again_only_when_it_changed(spool: Spool) -> None:
    table = FunctionTable(spool)
    factor = 2

    def scale(x: int) -> int:
        return x * factor

    first = table.get(scale)
    assert table.get(scale).place is first.place
    factor = 3
    second = table.get(scale)
    assert second.place is not first.place
    assert load(spool, second.place)(5) == 15


def test_a_bound_argument_that_changed_is_sent_again(spool: Spool) -> None:
    table = FunctionTable(spool)
    data = [1, 2, 3]
    first = table.get(functools.partial(sum, data))
    data.append(4)
    assert load(spool, table.get(functools.partial(sum, data)).place)() == 10
    assert load(spool, first.place)() == 6


def test_forgotten_places_are_given_back(spool: Spool) -> None:
    table = FunctionTable(spool)
    kept = table.get(functools.partial(pow, 2))
    for exponent in range(KEPT + 10):
        table.get(functools.partial(pow, exponent, 7))
    assert load(spool, kept.place)(5) == 32  # somebody still has it
    assert len(table._by_bytes) == KEPT


def test_what_is_not_callable_is_refused(spool: Spool) -> None:
    with pytest.raises(TypeError, match="3 is not callable"):
        FunctionTable(spool).get(3)  # type: ignore[arg-type]


def test_names() -> None:
    class Adder:
        def __call__(self) -> None: ...

        def method(self) -> None: ...

    assert name_of(operator.add) == "add"
    assert name_of(functools.partial(functools.partial(divmod, 1), 2)) == "divmod"
    assert name_of(Adder().method).endswith("Adder.method")
    assert name_of(Adder()).endswith("Adder")


def test_a_header_names_the_place_and_the_first_item(spool: Spool) -> None:
    function = FunctionTable(spool).get(operator.add)
    assert frames.HEADER.unpack(function.head) == (function.place.offset, function.place.length, 0)
    assert frames.HEADER.unpack(function.head_from(7))[2] == 7


def test_a_closure_that_changes_between_calls_is_seen() -> None:
    def make(base: Any) -> Any:
        def add(x: int, y: int = 0) -> Any:
            return (base, x, y)

        def change(value: Any) -> None:
            nonlocal base
            base = value

        return add, change

    one, change = make(1)
    two, _ = make(2)
    with manycore.Pool(1) as pool:
        for _ in range(3):
            assert [pool.apply(each, (5,)) for each in (one, one, two, one)] == [(1, 5, 0)] * 2 + [(2, 5, 0), (1, 5, 0)]
        change(1.0)  # equal, and not the same
        assert repr(pool.apply(one, (5,))) == "(1.0, 5, 0)"
        change([1])
        assert pool.apply(one, (5,)) == ([1], 5, 0)
        assert pool.apply(one, (5,)) == ([1], 5, 0)
        one.__defaults__ = (7,)
        assert pool.apply(one, (5,)) == ([1], 5, 7)
        two.__defaults__ = (7,)
        assert pool.apply(two, (5,)) == (2, 5, 7)
        assert pool.apply(two, (5,)) == (2, 5, 7)
        two.__kwdefaults__ = {"y": 8}  # not of a name that is only a keyword: without effect
        two.mark = 1
        assert pool.apply(two, (5,)) == (2, 5, 7)
        two.__code__ = one.__code__.replace(co_consts=one.__code__.co_consts, co_name="sub")
        assert pool.apply(two, (5,)) == (2, 5, 7)
