"""A process is killed at each named step of each structure, through Python: the rest go on, and nothing is wrong.

Needs a build with fault points (`CFLAGS=-DMANYCORE_FAULTS pip install .`); `.ci/run faults` makes one. The points are
read from the sources, so that one that no scene passes is a failure. MANYCORE_FAULT_PASSES=20 goes deeper.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import manycore
from manycore._memory.segment import forget_in_flight
from manycore._native import ring
from tests.chaos import fault_scenes as scenes

HEADERS = Path(__file__).parents[2] / "src" / "manycore" / "_native" / "c"
POINTS = sorted({p for f in HEADERS.glob("*.h") for p in re.findall(r'MC_FAULT\("([^"]+:[^"]+)"\)', f.read_text())})
PASSES = int(os.environ.get("MANYCORE_FAULT_PASSES", "2"))
IN_POOLS = ("arena", "bell", "results", "tasks")
IN_PAIRS = ("lane",)

# Steps that repair what another death has left: the victim of the first is killed at the second.
AFTER = {
    "lock:buried": "lock:claimed",
    "lock:taken over": "lock:claimed",
    "queue:hand emptied": "queue:task left",
    "semaphore:repaired": "semaphore:claimed",
    "condition:claimed a dead signal": "condition:woken",
    "condition:passed on": "condition:woken",
}

pytestmark = [
    pytest.mark.skipif(b"MANYCORE_FAULT" not in Path(ring.__file__).read_bytes(), reason="no build with fault points"),
    pytest.mark.timeout(180),
]


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


def ended(process: Any) -> int | None:
    process.join(30)
    code: int | None = process.exitcode
    return code


def start(target: Callable[..., None], *args: Any) -> Any:
    process = manycore.Process(target=target, args=args)
    process.start()
    return process


def test_the_points_are_found() -> None:
    assert len(POINTS) > 50
    assert {point.partition(":")[0] for point in POINTS} == {*scenes.SCENES, *IN_POOLS, *IN_PAIRS}


@pytest.mark.parametrize("number", range(1, PASSES + 1))
@pytest.mark.parametrize(
    "point", [point for point in POINTS if not point.startswith(IN_POOLS + IN_PAIRS) and point not in AFTER]
)
def test_partners_go_on(point: str, number: int) -> None:
    structure = point.partition(":")[0]
    _, make = scenes.SCENES[structure]
    objects, count = make(), manycore.SharedArray(2, int)
    partners = [start(scenes.be_partner, structure, objects, count, 0)]
    if structure != "barrier":
        partners.append(start(scenes.be_partner, structure, objects, count, 1))
    try:
        assert ended(start(scenes.be_victim, structure, objects, f"{point}:{number}")) == -signal.SIGKILL, "not passed"
        before = count.copy()
        go_on = range(len(partners))
        assert eventually(lambda: all(count[i] >= before[i] + 3 for i in go_on)), f"blocked: {before}, {count}"
        assert all(partner.is_alive() for partner in partners)
    finally:
        for partner in partners:
            partner.kill()
            partner.join()
    scenes.SCENES[structure][0](*objects)  # whatever the partners' own deaths have left


@pytest.mark.parametrize("number", [1, 7, 40])
@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith(IN_PAIRS)])
def test_who_talks_to_the_dead_is_told(point: str, number: int) -> None:
    here, there = manycore.Pipe()
    caller = start(scenes.be_caller, there, f"{point}:{number}")
    there.close()
    expected = 0
    with pytest.raises((EOFError, OSError)):
        while True:
            data = here.recv_bytes()
            assert data == bytes([expected % 251]) * 300_000
            here.send_bytes(data)
            expected += 1
    assert ended(caller) == -signal.SIGKILL, "not passed"
    here.close()
    gc.collect()
    assert "manycore:lane" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("point", ["lock:buried", "queue:hand emptied", "semaphore:repaired"])
def test_who_hears_of_a_death_may_die_of_it(point: str) -> None:
    structure = point.partition(":")[0]
    step, make = scenes.SCENES[structure]
    objects = make()
    repairer = start(scenes.be_repairer, structure, objects, f"{AFTER[point]}:1", f"{point}:1")
    assert ended(repairer) == -signal.SIGKILL, "not passed"
    for _ in range(3):
        step(*objects)


def test_who_takes_a_lock_over_may_die_of_it() -> None:
    step, make = scenes.SCENES["lock"]
    objects = make()
    assert ended(start(scenes.be_victim, "lock", objects, "lock:claimed:1")) == -signal.SIGKILL
    assert ended(start(scenes.take_over, objects, "lock:taken over:1")) == -signal.SIGKILL, "not passed"
    for _ in range(3):
        step(*objects)


@pytest.mark.parametrize("point", ["condition:claimed a dead signal", "condition:passed on"])
def test_a_notification_of_two_who_died_is_passed_on(point: str) -> None:
    condition, count = manycore.Condition(), manycore.SharedArray(1, int)
    waiters = []
    for number, plan in enumerate((f"{AFTER[point]}:1", f"{point}:1", "")):
        waiters.append(start(scenes.be_waiter, condition, count, plan))
        assert eventually(lambda number=number: condition._sleeping_count.get_value() > number)  # type: ignore[misc]
    os.kill(waiters[2].pid, signal.SIGSTOP)  # or it would find the first death, and not the one that is to die of it
    with condition:
        condition.notify()
    assert ended(waiters[0]) == -signal.SIGKILL
    assert ended(waiters[1]) == -signal.SIGKILL, "not passed"
    os.kill(waiters[2].pid, signal.SIGCONT)
    assert eventually(lambda: count[0] == 1), "the third was not woken"
    assert ended(waiters[2]) == 0


@pytest.mark.parametrize("number", range(1, PASSES + 1))
@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith(IN_POOLS)])
def test_a_pool_goes_on(point: str, number: int, tmp_path: Path) -> None:
    token = tmp_path / "token"
    arrays = [np.full(size, 1 + i % 100, np.uint8) for i, size in enumerate([10, 70_000, 300_000, 100_000] * 6)]
    died = 0
    with manycore.Pool(3, scenes.arm, (str(token), f"{point}:{number}")) as pool:
        end = time.monotonic() + 10
        while not died and time.monotonic() < end:
            sent = [pool.apply_async(scenes.double, (array,)) for array in arrays]
            long = [pool.apply_async(scenes.long_answer, (12_000,)) for _ in range(120)]
            math.factorial(20_000)  # holds the interpreter lock for a while, so that the results find no room
            for array, result in zip(arrays, sent, strict=True):
                with contextlib.suppress(manycore.WorkerDied):
                    answer = result.get(timeout=30)
                    assert answer.shape == array.shape
                    assert answer.min() == answer.max() == 2 * array[0]
            for result in long:
                with contextlib.suppress(manycore.WorkerDied):
                    assert result.get(timeout=30) == b"x" * 12_000
            for turn in range(5):
                time.sleep(0.0003 * 2**turn)  # the workers have nothing to do: some look out for more, later all sleep
                with contextlib.suppress(manycore.WorkerDied):
                    pool.map(scenes.double, range(30), 1)
            died = pool.stats().workers_died
        if number > 1 and died == 0:
            pytest.skip("not passed so often")
        assert died == 1, "not passed"
        for _ in range(3):
            assert [int(a[0]) for a in pool.map(scenes.double, arrays)] == [2 * int(a[0]) for a in arrays]
        del sent, long, result, answer
        gc.collect()
        forget_in_flight()
        engine = pool._engine

        def all_back() -> bool:
            pool.apply(scenes.double, (1,))
            return engine.outbox.arena.stats().blocks == 0

        assert eventually(all_back), f"{engine.outbox.arena.stats().blocks} blocks are lost"
        assert engine.outbox.arena._valid() is None
        assert pool.stats().workers_died == 1
