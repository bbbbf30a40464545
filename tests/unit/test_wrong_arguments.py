"""What is wrong with an argument is said at the call, by a TypeError or a ValueError that names the argument."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import manycore

SIZES: list[tuple[Callable[..., object], str]] = [
    (manycore.Pool, "processes"),
    (manycore.ProcessPoolExecutor, "max_workers"),
    (lambda **workers: manycore.map(abs, [1], **workers), "workers"),
    (lambda **workers: manycore.imap(abs, [1], **workers), "workers"),
]
WRONG: list[tuple[Callable[..., object], dict[str, Any], type[Exception], str]] = [
    *(
        (make, {name: value}, error, f"^{name} must be ")
        for make, name in SIZES
        for value, error in [("4", TypeError), (2.5, TypeError), (True, TypeError), (0, ValueError), (-1, ValueError)]
    ),
    *(
        (make, {name: value}, error, f"^{name} must be ")
        for make in (manycore.Pool, manycore.ProcessPoolExecutor)
        for name, value, error in [
            ("name", 3, TypeError),
            ("blas_threads", -1, ValueError),
            ("blas_threads", "a", TypeError),
            ("idle_timeout", "a", TypeError),
            ("initializer", 3, TypeError),
        ]
    ),
    (manycore.Pool, {"preload": "numpy"}, TypeError, "^preload must be names of modules"),
    (manycore.Pool, {"preload": ["math", 3]}, TypeError, "^a name in preload must be a str"),
    (lambda: manycore.preload(3), {}, TypeError, "^a name in modules must be a str"),  # type: ignore[arg-type]
    (lambda: manycore.imap(abs, 3), {}, TypeError, "not iterable"),  # type: ignore[arg-type]
    (lambda: manycore.imap(abs, [1], buffersize=1.5), {}, TypeError, "^buffersize must be an int"),  # type: ignore[arg-type]
    (manycore.Process, {"target": 3}, TypeError, "^target must be callable"),
    (manycore.supervise, {}, TypeError, "target"),
    (lambda: manycore.supervise(3), {}, TypeError, "^target must be callable"),  # type: ignore[arg-type]
    (manycore.Group, {"timeout": "x"}, TypeError, "^timeout must be a number of seconds"),
    (manycore.Group, {"grace": -1}, ValueError, "^grace must be a finite number of seconds"),
    (manycore.Lock, {"name": 3}, TypeError, "^name must be a str"),
    (manycore.Condition, {"lock": 3}, TypeError, "^lock must be a lock"),
    (manycore.Barrier, {"parties": "a"}, TypeError, "^parties must be an int"),
    (manycore.Barrier, {"parties": 2, "action": 3}, TypeError, "^action must be callable"),
    (manycore.Channel, {"capacity": "a"}, TypeError, "^capacity must be an int"),
    (manycore.Channel, {"capacity": -1}, ValueError, "^capacity must be at least 0"),
    (manycore.broadcast, {"capacity": 0}, ValueError, "^capacity must be at least 1"),
    (manycore.broadcast, {"capacity": 1.5}, TypeError, "^capacity must be an int"),
]


@pytest.mark.parametrize(("make", "given", "error", "message"), WRONG)
def test_at_the_call(make: Callable[..., object], given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**given)


def test_of_a_pool_s_methods() -> None:
    with manycore.Pool(1) as pool:
        calls: list[tuple[Callable[[], object], str]] = [
            (lambda: pool.map(abs, [1], chunksize="a"), "chunksize"),  # type: ignore[arg-type]
            (lambda: pool.outcomes(abs, [1], buffersize=1.5), "buffersize"),  # type: ignore[arg-type]
            (lambda: pool.apply_async(abs, (1,), callback=3), "callback"),  # type: ignore[arg-type]
            (lambda: pool.map_async(abs, [1], error_callback=3), "error_callback"),  # type: ignore[arg-type]
            (lambda: pool.resize("a"), "the number of workers"),  # type: ignore[arg-type]
        ]
        for call, name in calls:
            with pytest.raises(TypeError, match=f"^{name} must be "):
                call()


@pytest.mark.parametrize("shape", [-1, (2, -3), (-2, -3)])
def test_an_array_has_no_negative_extent(shape: Any) -> None:
    pytest.importorskip("numpy")
    with pytest.raises(ValueError, match="negative extent"):
        manycore.SharedArray(shape)


def test_what_cannot_be_pickled_is_named_from_the_argument_on() -> None:
    held = {"lock": threading.Lock()}
    with pytest.raises(manycore.TaskPicklingError, match=r"^value\['lock'\]: "):
        manycore.share(held)
    with pytest.raises(manycore.TaskPicklingError, match=r"^process\._args\[0\]\['lock'\]: "):
        manycore.Process(target=len, args=(held,)).start()


def test_a_context_s_pool_takes_what_a_pool_takes() -> None:
    with manycore.get_context("fork").Pool(1, name="resize") as pool:
        assert pool.name == "resize"
        assert pool.apply(abs, (-1,)) == 1


@pytest.mark.parametrize(
    "name", ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Event", "Condition", "Process", "Queue"]
)
def test_a_message_names_what_was_called(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^(BaseContext\.)?{name}(\.__init__)?\(\) "):
        getattr(manycore, name)(nonsense=1)


@pytest.mark.parametrize("method", ["kill", "terminate", "interrupt", "stack"])
def test_a_process_that_was_not_started_says_so(method: str) -> None:
    with pytest.raises(AttributeError, match=rf"^{method}\(\) needs a process that was started"):
        getattr(manycore.Process(), method)()
