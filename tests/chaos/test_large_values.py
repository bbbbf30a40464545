"""Workers that are killed while large values move: every answer is right or WorkerDied, and no block is lost."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from random import Random
from typing import Any

import numpy as np
import pytest

import manycore
from manycore._memory.segment import forget_in_flight

SIZES = (10, 5_000, 70_000, 300_000, 2 << 20)


def double(array: Any) -> Any:
    """Writes into its argument, which is this worker's own."""
    array += array
    return array


@pytest.mark.timeout(120)
def test_killed_at_any_moment(rng: Random) -> None:
    with manycore.Pool(2) as pool:
        stop = threading.Event()

        def kill_now_and_then() -> None:
            while not stop.wait(rng.random() * 0.5):
                pids = pool.stats().pids
                with contextlib.suppress(ProcessLookupError, IndexError):
                    os.kill(rng.choice(pids), signal.SIGKILL)

        killer = threading.Thread(target=kill_now_and_then)
        killer.start()
        right = died = 0
        start = time.monotonic()
        try:
            while time.monotonic() < start + 3 or (not (right and died) and time.monotonic() < start + 40):
                sent = [np.full(rng.choice(SIZES), value, np.uint8) for value in range(1, 30)]
                for value, result in enumerate([pool.apply_async(double, (array,)) for array in sent], 1):
                    try:
                        answer = result.get(timeout=60)
                    except manycore.WorkerDied:
                        died += 1
                        continue
                    assert answer.shape == sent[value - 1].shape
                    assert answer.min() == answer.max() == 2 * value
                    right += 1
        finally:
            stop.set()
            killer.join()
        assert right > 0
        assert died > 0
        del answer, result
        assert pool.apply(double, (np.ones(100_000),))[0] == 2
        gc.collect()
        forget_in_flight()
        engine = pool._engine
        blocks = [engine.outbox.arena.stats().blocks]
        limit = time.monotonic() + 20
        while blocks[-1] and time.monotonic() < limit:
            pool.apply(double, (np.ones(3),))
            blocks.append(engine.outbox.arena.stats().blocks)
        assert blocks[-1] == 0
        assert engine.outbox.arena._valid() is None
