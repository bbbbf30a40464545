"""Options of tasks: what is refused, what views share, and what maps take."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import manycore
from manycore._engine.policy import BACKOFF_MOST, Policy, make_policy
from manycore._launch import machine


@pytest.fixture(scope="module", params=["pool", "executor"])
def face(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "pool":
        with manycore.Pool(2) as pool:
            yield pool
    else:
        with manycore.ProcessPoolExecutor(2) as executor:
            yield executor


def submit(face: Any, function: Callable[..., Any], *args: Any) -> Any:
    return face.apply_async(function, args) if isinstance(face, manycore.Pool) else face.submit(function, *args)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": 0}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": float("inf")}, ValueError),
        ({"timeout": "5"}, TypeError),
        ({"timeout": True}, TypeError),
        ({"soft_timeout": 0}, ValueError),
        ({"soft_timeout": 2, "timeout": 2}, ValueError),
        ({"retries": -1}, ValueError),
        ({"retries": 1.5}, TypeError),
        ({"retries": True}, TypeError),
        ({"retry_on": "ValueError"}, TypeError),
        ({"retry_on": (ValueError, int)}, TypeError),
        ({"retry_on": ValueError()}, TypeError),
        ({"backoff": -1}, ValueError),
        ({"backoff": "1"}, TypeError),
        ({"priority": 1.0}, TypeError),
        ({"memory_limit": 1000}, ValueError),
        ({"memory_limit": "2 GB"}, TypeError),
        ({"name": 5}, TypeError),
        ({"deadline": 5}, TypeError),
    ],
)
def test_wrong_options_are_refused_where_they_are_given(face: Any, options: dict[str, Any], error: type) -> None:
    with pytest.raises(error, match=next(iter(options))):
        face.options(**options)


def test_a_view_is_the_same_pool(face: Any) -> None:
    view = face.options(name="nightly", timeout=60)
    assert isinstance(view, type(face))
    before, seen, after = (set(each.stats().pids) for each in (face, view, face))  # workers may still be starting
    assert before <= seen <= after
    found = submit(view, manycore.current_task).result(30)
    assert found.name == "nightly"
    assert found.deadline - time.monotonic() < 60
    more = view.options(retries=1)
    assert submit(more, manycore.current_task).result(30).name == "nightly"
    assert submit(face, manycore.current_task).result(30).name == "current_task"
    assert "options" in repr(view)
    del view, more
    assert submit(face, abs, -1).result(30) == 1


def test_maps_of_a_view(face: Any) -> None:
    view = face.options(timeout=0.2)
    if not isinstance(face, manycore.Pool):
        results = iter(view.map(time.sleep, [0, 60]))
        assert next(results) is None
        with pytest.raises(manycore.TaskTimeout):
            next(results)
        return
    with pytest.raises(manycore.TaskTimeout):
        view.map(time.sleep, [0, 60])
    with pytest.raises(manycore.TaskTimeout):
        view.map_async(time.sleep, [0, 60]).get(30)
    with pytest.raises(manycore.TaskTimeout):
        view.starmap(time.sleep, [(0,), (60,)])
    found = [type(outcome.error) for outcome in view.outcomes(time.sleep, [0, 60])]
    assert found == [type(None), manycore.TaskTimeout]
    assert view.map(abs, [-1], timeout=30) == [1]
    with pytest.raises(ValueError, match="timeout"):
        view.map(abs, [0], timeout=-1)


def test_one_call_takes_options(tmp_path: Path) -> None:
    def flaky(name: str) -> int:
        with open(tmp_path / name, "a") as file:
            file.write("x")
        if os.path.getsize(tmp_path / name) < 3:
            raise OSError(name)
        return os.path.getsize(tmp_path / name)

    assert manycore.map(flaky, ["a", "b"], retries=2, retry_on=OSError, backoff=0.001, workers=2) == [3, 3]
    failed: list[Any] = manycore.map(flaky, ["c"], retries=9, retry_on=LookupError, on_error="collect")
    assert isinstance(failed[0].error, OSError)
    assert list(manycore.imap(lambda n: len(bytearray(n)), [10], memory_limit=1 << 24, soft_timeout=60)) == [10]
    with pytest.raises(ValueError, match="soft_timeout"):
        manycore.map(abs, [1], soft_timeout=-1)


def test_backoffs_grow_and_are_spread(rng: random.Random) -> None:
    policy = Policy(retries=9, backoff=0.5)
    for attempt, most in ((1, 0.5), (2, 1.0), (3, 2.0), (20, BACKOFF_MOST), (10**6, BACKOFF_MOST)):
        waits = [policy.wait_ns(attempt) for _ in range(50)]
        assert all(wait is not None and most * 0.5e9 <= wait <= most * 1e9 for wait in waits)
        assert len(set(waits)) > 10
    asked = Policy(retries=1, backoff=lambda attempt: attempt / 2)
    assert asked.wait_ns(1) is None
    assert asked.ask_ns(3) == 1_500_000_000
    with pytest.raises(TypeError, match="backoff"):
        Policy(retries=1, backoff=lambda _: "soon").ask_ns(1)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="backoff"):
        Policy(retries=1, backoff=lambda _: -1).ask_ns(1)


def test_what_promises_nothing_costs_nothing() -> None:
    assert make_policy() is None
    assert make_policy(timeout=None, retries=0) is None
    assert make_policy(priority=1) is not None


@pytest.mark.parametrize(
    ("cores", "memory", "workers"), [(4, 64 << 30, 4), (64, 1 << 30, 8), (4, 1 << 20, 1), (999, 1 << 50, 256)]
)
def test_automatic_workers(monkeypatch: pytest.MonkeyPatch, cores: int, memory: int, workers: int) -> None:
    monkeypatch.setattr(machine, "cpu_count", lambda: cores)
    monkeypatch.setattr(machine, "available_bytes", lambda: memory)
    assert machine.automatic_workers() == workers


def test_auto_and_sizes(face: Any) -> None:
    for size in (0, 257, -1):
        with pytest.raises(ValueError, match="1 to 256"):
            face.resize(size)
    face.resize(3)
    assert face._max_workers == 3
    face.resize(2)
    with pytest.raises(ValueError, match="idle_timeout"):
        manycore.Pool(1, idle_timeout=0)
    with manycore.Pool("auto") as pool:
        assert pool.apply(abs, (-1,)) == 1


def test_each_map_takes_on_error(face: Any) -> None:
    def kinds(results: Any) -> list[str]:
        return [type(result).__name__ for result in results]

    if isinstance(face, manycore.Pool):
        runs: list[Callable[..., Any]] = [
            face.map,
            lambda *args, **options: face.map_async(*args, **options).get(20),
            lambda f, items, **options: face.starmap_async(f, [(item,) for item in items], **options).get(20),
            face.imap,
        ]
    else:
        runs = [face.map, lambda *args, **options: face.map(*args, buffersize=2, **options)]
    for run in runs:
        assert kinds(run(inverse, [1, 0, 2], on_error="collect")) == ["float", "Failure", "float"]
        assert list(run(inverse, [1, 0, 2], on_error="skip")) == [1.0, 0.5]
        with pytest.raises(ZeroDivisionError):
            list(run(inverse, [1, 0, 2], on_error="raise"))
        with pytest.raises(ValueError, match="on_error must be"):
            run(inverse, [1], on_error="ignore")


def inverse(number: int) -> float:
    return 1 / number


def test_a_callback_gets_what_was_collected() -> None:
    told: list[Any] = []
    with manycore.Pool(1) as pool:
        pool.map_async(inverse, [0, 1], callback=told.append, error_callback=told.append, on_error="skip").wait(20)
    assert told == [[1.0]]


def test_a_map_takes_every_option() -> None:
    options: dict[str, Any] = {"timeout": 20, "soft_timeout": 10, "retries": 1, "priority": 3, "name": "seen"}
    assert manycore.map(name_of_task, range(2), workers=1, **options) == ["seen", "seen"]
    assert list(manycore.imap(name_of_task, range(2), workers=1, **options)) == ["seen", "seen"]


def name_of_task(_: int) -> str:
    task = manycore.current_task()
    assert task is not None
    return task.name


@pytest.mark.parametrize("make", [manycore.Pool, manycore.ProcessPoolExecutor])
def test_a_pool_that_has_ended_takes_no_options(make: Callable[[int], Any]) -> None:
    ended = make(1)
    view = ended.options(retries=1)
    with ended:
        pass
    for pool in (ended, view):
        with pytest.raises(manycore.PoolClosed):
            pool.options(timeout=1, retries=2)
