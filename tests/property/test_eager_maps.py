"""`Pool.map` and its kin, with items that fail in all ways, in pools that may be ended meanwhile.

Each item runs once, the error is of one that failed, and callbacks are told once.

MANYCORE_FULL=1 plays ten thousand rounds.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import manycore

FULL = "MANYCORE_FULL" in os.environ
ROUNDS = 10_000 if FULL else 100
ERRORS = (ValueError, manycore.WorkerDied, manycore.ResultPicklingError)
HARMLESS = ("large", "slow")


class Step:
    """An item of a map: writes its number into a ledger, then does what its number says."""

    def __init__(self, ledger: Path, deeds: dict[int, str]) -> None:
        self.ledger = ledger
        self.deeds = deeds

    def __call__(self, number: int) -> Any:
        file = os.open(self.ledger, os.O_WRONLY | os.O_APPEND)
        os.write(file, b"%d\n" % number)
        os.close(file)
        deed = self.deeds.get(number)
        if deed == "fail":
            raise ValueError(number)
        if deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if deed == "exit":
            os._exit(3)
        if deed == "slow":
            time.sleep(0.01)
        return bytes(200_000) if deed == "large" else threading.Lock() if deed == "unpicklable" else number

    def result(self, number: int) -> Any:
        return bytes(200_000) if self.deeds.get(number) == "large" else number

    def failing(self) -> set[int]:
        return {number for number, deed in self.deeds.items() if deed not in HARMLESS}


def play(pool: manycore.Pool, step: Step, count: int) -> bool:
    """One map; returns whether the pool goes on."""
    way = random.choice(["map", "starmap", "map_async", "starmap_async"])
    end = random.choice(["none", "none", "none", "terminate", "join"])
    items: Any = [(number,) for number in range(count)] if "star" in way else range(count)
    told: list[tuple[str, Any]] = []
    error: BaseException | None = None
    result: Any = None
    if end == "terminate":
        ending = threading.Timer(random.random() * 0.02, pool.terminate)
        ending.start()
    try:
        if "async" in way:
            future = getattr(pool, way)(
                step,
                items,
                random.choice([None, 1, 3, 20]),
                lambda value: told.append(("result", value)),
                lambda error: told.append(("error", error)),
            )
            if end == "join":
                pool.close()
                pool.join()
                assert future.ready()
            result = future.get(60)
        else:
            result = getattr(pool, way)(step, items, random.choice([None, 1, 3, 20]))
    except (*ERRORS, manycore.PoolClosed) as caught:
        error = caught
    if end == "terminate":
        ending.join()
    begun = sorted(int(line) for line in step.ledger.read_text().split())
    if isinstance(error, manycore.PoolClosed):
        assert end == "terminate"
        assert len(begun) == len(set(begun))
    else:
        assert (error is not None) == bool(step.failing())
        if error is None:
            assert result == [step.result(number) for number in range(count)]
        if type(error) is ValueError:
            assert error.args[0] in step.failing()
        assert end == "terminate" or begun == list(range(count))
    if "async" in way and (told or not isinstance(error, manycore.PoolClosed)):
        assert told == [("result", result) if error is None else ("error", error)]
    return end == "none" or (end == "join" and "async" not in way)


@pytest.mark.timeout(900 if FULL else 60)
def test_each_item_runs_once_whatever_the_others_do(tmp_path: Path) -> None:
    deeds = ("fail", "fail", "die", "exit", "unpicklable", *HARMLESS)
    pool: manycore.Pool | None = None
    try:
        for round_ in range(ROUNDS):
            if pool is None:
                pool = manycore.Pool(random.choice([1, 2, 3]))
            count = random.choice([1, 5, 50, 300])
            ledger = tmp_path / str(round_)
            ledger.touch()
            chosen = {random.randrange(count): random.choice(deeds) for _ in range(random.choice([0, 1, 2, 5]))}
            if not play(pool, Step(ledger, chosen), count):
                pool.terminate()
                pool = None
            ledger.unlink()
    finally:
        if pool is not None:
            pool.terminate()
