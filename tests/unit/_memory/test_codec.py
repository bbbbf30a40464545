"""Values through the codec: buffers out of band, registrations, errors that name the part, memories."""

from __future__ import annotations

import array
import copyreg
import dataclasses
import functools
import gc
import multiprocessing
import multiprocessing.reduction
import pickle
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from manycore import errors
from manycore._memory import codec


def again(value: Any, **options: Any) -> Any:
    """The value after a pickle and back, with buffers as another process would hold them."""
    buffers: list[memoryview] = []
    data = codec.dumps(value, buffers=buffers, **options)
    assert all(buffer.nbytes >= 65536 for buffer in buffers)
    return codec.loads(data, buffers=[bytearray(buffer) for buffer in buffers])


@dataclasses.dataclass
class Holder:
    content: Any


class Opaque:
    """What pickle refuses unless someone registers how."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.lock = threading.Lock()


def test_plain_values_are_a_plain_pickle() -> None:
    value: Any = ((1, 2.0, "a", b"b", None, True, [1], {"k": (2,)}), {})
    assert codec.dumps(value) == pickle.dumps(value, 5)
    assert codec.loads(pickle.dumps(value, 5)) == value


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 65535, 65536, 65537, 3_000_000])
def test_sizes(size: int) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    values: list[Any] = [content, bytearray(content), array.array("B", content), memoryview(content)]
    value: Any
    for value in [*values, np.frombuffer(content, "u1")]:
        result = again((value, {"k": value}))
        assert type(result[0]) is type(value)
        assert bytes(result[0]) == content
        assert result[0] is result[1]["k"]


def test_large_arrays_go_out_of_band() -> None:
    large = np.arange(100_000.0).reshape(100, 1000)
    for value in (large, np.asfortranarray(large), large[10:90]):
        buffers: list[memoryview] = []
        data = codec.dumps({"x": value, "y": [value]}, buffers=buffers)
        assert len(data) < 1000
        assert [(buffer.ndim, buffer.format, buffer.nbytes) for buffer in buffers] == [(1, "B", value.nbytes)]
        result = codec.loads(data, buffers=[bytearray(buffers[0])])["x"]
        np.testing.assert_array_equal(result, value)
        assert result.flags.writeable
        assert result.flags.f_contiguous == value.flags.f_contiguous


def test_read_only_stays_read_only() -> None:
    for size in (10, 100_000):
        value = np.arange(size)
        value.flags.writeable = False
        assert not again(value).flags.writeable
        view = memoryview(bytearray(size)).toreadonly()
        assert again(view).readonly
        assert not again(memoryview(bytearray(size))).readonly


@pytest.mark.parametrize("code", ["B", "b", "h", "I", "q", "f", "d", "?"])
def test_memoryviews_keep_format_and_shape(code: str) -> None:
    view = memoryview(bytearray(range(48))).cast(code)  # type: ignore[call-overload]
    assert again(view) == view
    assert again(view[::2]).tolist() == view[::2].tolist()
    if view.itemsize == 8:
        square = view.cast("B").cast(code, (2, 3))
        assert again(square).tolist() == square.tolist()


def test_a_failure_leaves_no_buffers() -> None:
    buffers: list[Any] = ["before"]
    with pytest.raises(errors.TaskPicklingError):
        codec.dumps([np.zeros(100_000), threading.Lock()], buffers=buffers)
    assert buffers == ["before"]


def test_registrations_are_honoured() -> None:
    with pytest.raises(errors.TaskPicklingError):
        codec.dumps(Opaque(3))
    multiprocessing.reduction.ForkingPickler.register(Opaque, _reduce_opaque)
    try:
        assert again([Opaque(3)])[0].number == 3
    finally:
        del multiprocessing.reduction.ForkingPickler._extra_reducers[Opaque]  # type: ignore[attr-defined]
    copyreg.pickle(Opaque, _reduce_opaque)
    try:
        assert again([Opaque(4)])[0].number == 4
    finally:
        del copyreg.dispatch_table[Opaque]


def _reduce_opaque(opaque: Any) -> Any:
    return Opaque, (opaque.number,)


class Connection:
    def __init__(self) -> None:
        self.socket = threading.Lock()


class Client:
    def __init__(self) -> None:
        self.connection = Connection()


def _closure(captured: Any) -> Callable[[], Any]:
    return lambda: captured


@pytest.mark.parametrize(
    ("value", "roots", "path"),
    [
        (((Client(),), {}), ("args", "kwargs"), "args[0].connection.socket"),
        (((1,), {"k": [1, {"z": Client()}]}), ("args", "kwargs"), "kwargs['k'][1]['z'].connection.socket"),
        (_closure([Client()]), ("function",), "function closes over captured[0].connection.socket"),
        (functools.partial(print, Client()), ("function",), "function.args[0].connection.socket"),
        (Holder(threading.Lock()), ("item",), "item.content"),
        (threading.Lock(), ("item",), "item"),
    ],
)
def test_errors_name_the_part(value: Any, roots: tuple[str, ...], path: str) -> None:
    with pytest.raises(errors.TaskPicklingError) as caught:
        codec.dumps(value, roots=roots)
    assert str(caught.value) == f"{path}: cannot pickle '_thread.lock' object"
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(errors.ResultPicklingError):
        codec.dumps(value, to_parent=True)


@pytest.mark.parametrize("make", [multiprocessing.RLock, multiprocessing.Queue, lambda: multiprocessing.Value("i")])
def test_the_standard_librarys_shared_objects_refuse_and_the_error_says_what_goes(make: Any) -> None:
    with pytest.raises(errors.TaskPicklingError) as caught:
        codec.dumps(([{"lock": make()}],), roots=("initargs",))
    said = str(caught.value)
    assert said.startswith("initargs[0][0]['lock']: RuntimeError: ")
    assert said.endswith("through inheritance; manycore's go to any process")


async def wait_for_nothing() -> None: ...


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (wait_for_nothing, "asyncio.run"),
        (lambda: (n for n in range(3)), "make a list of it"),
        (lambda: open(__file__), "send its path"),  # noqa: SIM115
    ],
)
def test_the_error_says_what_goes_in_the_place_of(make: Callable[[], Any], hint: str) -> None:
    value = make()
    try:
        with pytest.raises(errors.TaskPicklingError, match=f"^item: cannot pickle .*; .*{hint}"):
            codec.dumps(value, roots=("item",))
    finally:
        value.close()


def test_an_error_of_the_users_own_is_the_cause() -> None:
    class Bad:
        def __reduce__(self) -> Any:
            raise ZeroDivisionError("no")

    with pytest.raises(errors.TaskPicklingError, match=r"item\[1\]: ZeroDivisionError: no") as caught:
        codec.dumps([0, Bad()], roots=("item",))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_deep_value_fails_with_an_error() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(errors.TaskPicklingError):
        codec.dumps(deep)


def test_lambdas_of_an_importable_module_run_over_that_module() -> None:
    function = codec.load_function(codec.dump_function(lambda: Holder))
    assert function() is Holder
    assert isinstance(function, types.FunctionType)
    assert function.__globals__ is globals()


def test_the_same_bytes_while_nothing_changes() -> None:
    def make(variable: Any) -> Callable[[], Any]:
        def function() -> Any:
            return variable

        def rebind(value: Any) -> None:
            nonlocal variable
            variable = value

        function.rebind = rebind  # type: ignore[attr-defined]
        return function

    namespace: dict[str, Any] = {"__name__": "nowhere", "other": 1, "items": [1]}
    exec("def reads(): return other\ndef items_of(): return items\ndef missing(): return absent", namespace)
    reads, items_of, missing = namespace["reads"], namespace["items_of"], namespace["missing"]

    first = codec.dump_function(reads)
    assert codec.dump_function(reads) is first
    namespace["other"] = True  # equal to 1, and not the same
    second = codec.dump_function(reads)
    assert second != first
    assert codec.dump_function(reads) is second

    first = codec.dump_function(items_of)
    assert codec.dump_function(items_of) == first
    namespace["items"].append(2)
    assert codec.dump_function(items_of) != first

    first = codec.dump_function(missing)
    assert codec.dump_function(missing) is first
    namespace["absent"] = 3
    assert codec.dump_function(missing) != first

    function = make(1)
    rebind = function.rebind  # type: ignore[attr-defined]
    del function.rebind  # type: ignore[attr-defined]
    first = codec.dump_function(function)
    assert codec.dump_function(function) is first
    rebind(2)
    assert codec.load_function(codec.dump_function(function))() == 2

    def defaults(a: int = 1) -> int:
        return a

    first = codec.dump_function(defaults)
    defaults.__defaults__ = (2,)
    assert codec.load_function(codec.dump_function(defaults))() == 2


def test_changed_classes_and_equal_code_are_seen() -> None:
    namespace: dict[str, Any] = {"__name__": "nowhere"}
    exec("class C:\n  x = 1\ndef f(): return C.x\ndef make(k): return lambda: k", namespace)
    cls, function, make = namespace["C"], namespace["f"], namespace["make"]
    of_instance, of_class = codec.dumps([cls()]), codec.dump_function(function)
    assert codec.dump_function(function) is of_class
    assert codec.dumps([cls()]) == of_instance
    cls.x = 2
    assert codec.dump_function(function) != of_class
    assert codec.dumps([cls()]) != of_instance

    first = codec.dump_function(make(1))
    assert codec.dump_function(make(1)) is first  # another function of the same code, with the same variables
    assert codec.load_function(codec.dump_function(make(2)))() == 2
    assert codec.load_function(codec.dump_function(make(1.0)))() == 1.0


def test_a_large_global_is_seen_when_it_is_bound_anew() -> None:
    namespace: dict[str, Any] = {"__name__": "nowhere", "table": np.zeros(100_000)}
    exec("def reads(): return table.sum()", namespace)
    reads = namespace["reads"]
    first = codec.dump_function(reads)
    assert codec.dump_function(reads) is first
    namespace["table"] = np.ones(100_000)
    assert codec.dump_function(reads) != first


def _named() -> int:
    return 1


def test_a_name_that_is_bound_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    function, cls = _named, Holder
    assert codec.loads(codec.dumps([function, cls])) == [function, cls]
    codec.dump_function(function)
    monkeypatch.setitem(globals(), "_named", None)
    monkeypatch.setitem(globals(), "Holder", None)
    assert codec.loads(codec.dumps([function]))[0]() == 1  # by value now
    assert codec.loads(codec.dumps([cls]))[0] is cls
    assert codec.load_function(codec.dump_function(lambda: function))()() == 1


def test_nothing_leaks() -> None:
    def make() -> tuple[weakref.ref[Any], ...]:
        namespace: dict[str, Any] = {"__name__": "nowhere", "helper": None}
        exec("class C:\n  def m(self): return helper\ndef f(): return C, f, g\ndef g(): return f", namespace)
        function, cls = namespace["f"], namespace["C"]
        local = lambda: function
        for each in (function, cls, local, cls().m):
            codec.loads(codec.dumps(each))
            codec.dump_function(each)
        return weakref.ref(function), weakref.ref(cls), weakref.ref(local)

    references = make()
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


def test_threads_and_nesting() -> None:
    class Nested:
        def __reduce__(self) -> Any:
            return codec.loads, (codec.dumps(lambda: 7),)

    wrong: list[Any] = []

    def run() -> None:
        for _ in range(200):
            function = codec.loads(codec.dumps(Nested()))
            if function() != 7:
                wrong.append(function)
            holder = codec.loads(codec.dumps(Holder([Holder, function])))
            if holder.content[0] is not Holder or holder.content[1]() != 7:
                wrong.append(holder)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
