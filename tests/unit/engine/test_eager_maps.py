"""`Pool.map` and its kin raise a failure when all items are over, as in `multiprocessing`."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import manycore

WAYS = ["map", "starmap", "map_async", "starmap_async"]
COUNT = 60


@pytest.fixture(scope="module")
def pool() -> Iterator[manycore.Pool]:
    with manycore.Pool(2) as made:
        yield made


class Step:
    """An item of a map: writes its number into a folder when it has begun, and does what its number says.

    Args:
        folder: Where.
        deeds: What some numbers do; others return their number.
    """

    def __init__(self, folder: Path, deeds: dict[int, Callable[[], Any]]) -> None:
        self.folder = folder
        self.deeds = deeds

    def __call__(self, number: int) -> Any:
        (self.folder / str(number)).touch()
        return self.deeds[number]() if number in self.deeds else number

    def begun(self) -> list[int]:
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())


def fails(error: type[BaseException] = ValueError) -> Callable[[], Any]:
    def fail() -> None:
        raise error("on purpose")

    return fail


def after(path: Path, then: Callable[[], Any] = bool) -> Callable[[], Any]:
    """What waits for a path to be there."""

    def wait() -> Any:
        while not path.exists():
            time.sleep(0.001)
        return then()

    return wait


def sleep() -> None:
    time.sleep(1000)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Unloadable:
    """Cannot be rebuilt by who gets it."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def call(pool: manycore.Pool, way: str, step: Step, count: int = COUNT, **options: Any) -> Any:
    items: Any = range(count) if "star" not in way else [(number,) for number in range(count)]
    result = getattr(pool, way)(step, items, **options)
    return result.get(30) if "async" in way else result


@pytest.mark.parametrize("chunksize", [None, 1, 7])
@pytest.mark.parametrize("way", WAYS)
def test_a_failure_stops_no_other_item(pool: manycore.Pool, tmp_path: Path, way: str, chunksize: int | None) -> None:
    step = Step(tmp_path, {0: fails(), 9: fails()})
    with pytest.raises(ValueError, match="on purpose"):
        call(pool, way, step, chunksize=chunksize)
    assert step.begun() == list(range(COUNT))


@pytest.mark.parametrize("way", WAYS)
def test_a_death_stops_no_other_item(pool: manycore.Pool, tmp_path: Path, way: str) -> None:
    step = Step(tmp_path, {3: die})
    with pytest.raises(manycore.WorkerDied):
        call(pool, way, step)
    assert step.begun() == list(range(COUNT))


@pytest.mark.parametrize("way", WAYS)
def test_what_cannot_be_rebuilt_here_stops_no_other_item(pool: manycore.Pool, tmp_path: Path, way: str) -> None:
    step = Step(tmp_path, {0: Unloadable})
    with pytest.raises(manycore.ResultPicklingError):
        call(pool, way, step)
    assert step.begun() == list(range(COUNT))


def test_a_timeout_stops_no_other_item(pool: manycore.Pool, tmp_path: Path) -> None:
    step = Step(tmp_path, {0: sleep})
    with pytest.raises(manycore.TaskTimeout):
        pool.map(step, range(COUNT), timeout=0.2)
    assert step.begun() == list(range(COUNT))


def fail_once() -> int:
    task = manycore.current_task()
    assert task is not None
    if task.attempt == 1:
        raise ValueError("on purpose")
    return task.attempt


def test_an_item_that_is_tried_again_has_not_failed(pool: manycore.Pool, tmp_path: Path) -> None:
    assert pool.map(Step(tmp_path, {0: fail_once}), range(3), retries=1) == [2, 1, 2]


@pytest.mark.parametrize("way", ["map", "map_async"])
def test_the_failure_that_came_first_is_raised(pool: manycore.Pool, tmp_path: Path, way: str) -> None:
    told: list[BaseException] = []
    gate, failed = tmp_path / "gate", pool.stats().items_failed

    def open_gate() -> None:
        while pool.stats().items_failed == failed:
            time.sleep(0.001)
        gate.touch()

    opener = threading.Thread(target=open_gate)
    opener.start()
    step = Step(tmp_path, {0: after(gate, fails(KeyError)), 1: fails()})
    options: dict[str, Any] = {} if way == "map" else {"error_callback": told.append, "callback": told.append}
    with pytest.raises(ValueError, match="on purpose") as caught:
        call(pool, way, step, chunksize=1, **options)
    opener.join()
    assert told == ([] if way == "map" else [caught.value])


def test_results_of_a_failed_map_are_dropped_as_they_come(pool: manycore.Pool, tmp_path: Path) -> None:
    gate, count = tmp_path / "gate", 40
    done = pool.stats().items_done
    deeds = dict.fromkeys(range(2, count), lambda: bytes(100_000))
    result = pool.map_async(Step(tmp_path, {0: after(gate), 1: fails()} | deeds), range(count), chunksize=1)
    while pool.stats().items_done - done < count - 2:
        assert not result.ready()
        time.sleep(0.001)
    held = result._run._blocks
    assert set(range(2, count)) <= set(held)
    assert not any(held[index].values for index in range(2, count))
    with pytest.raises(manycore.TimeoutError):
        result.get(0)
    gate.touch()
    with pytest.raises(ValueError, match="on purpose"):
        result.get(30)


@pytest.mark.parametrize("way", ["map", "map_async"])
def test_a_failed_map_in_a_pool_that_ends_raises_its_failure(tmp_path: Path, way: str) -> None:
    raised: list[BaseException] = []

    def consume(pool: manycore.Pool) -> None:
        try:
            call(pool, way, Step(tmp_path, {0: fails(), 1: sleep}))
        except BaseException as error:
            raised.append(error)

    with manycore.Pool(2) as ending:
        consumer = threading.Thread(target=consume, args=(ending,))
        consumer.start()
        while not ending.stats().items_failed:
            time.sleep(0.001)
        ending.terminate()
        consumer.join(30)
    assert [type(error) for error in raised] == [ValueError]


def test_a_closed_pool_is_joined_when_a_failed_map_is_over(tmp_path: Path) -> None:
    step = Step(tmp_path, {0: fails()})
    told: list[BaseException] = []
    pool = manycore.Pool(2)
    pool.map_async(step, range(COUNT), error_callback=told.append)
    pool.close()
    pool.join()
    assert [type(error) for error in told] == [ValueError]
    assert step.begun() == list(range(COUNT))


def test_an_executors_map_raises_its_failure_at_its_place(tmp_path: Path) -> None:
    """And what no worker has begun is cancelled, as in `concurrent.futures`."""
    gate = tmp_path / "gate"
    with manycore.ProcessPoolExecutor(1) as executor:
        step = Step(tmp_path, {1: fails(), 2: after(gate)})
        results = executor.map(step, range(COUNT), chunksize=2)
        assert next(results) == 0
        with pytest.raises(ValueError, match="on purpose"):
            next(results)
        gate.touch()
    assert len(step.begun()) < COUNT
