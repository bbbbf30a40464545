"""Producers and consumers of one queue or channel, one of which is killed at a random moment.

The others go on; what was put is got exactly once, but for the item in the hands of the dead; every wait ends, and
those with a timeout end in time. `MANYCORE_CHAOS_RUNS=1000` runs longer.
"""

from __future__ import annotations

import os
import queue
import random
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manycore import Channel, ChannelClosed, queues, select

RUNS = int(os.environ.get("MANYCORE_CHAOS_RUNS", "100"))
BATCHES = 10
ITEMS = 60  # of each producer
RECORD = struct.Struct("<II")
SHORT_S = 0.002
SLACK_S = 2.0  # of a loaded machine; a wait that is not bounded hangs


def fork(run: object, *args: object) -> int:
    """A child that runs, and exits without what pytest would do."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run(*args)  # type: ignore[operator]
            code = 0
        finally:
            os._exit(code)
    return pid


def produce(many: Any, who: int, size: int) -> None:
    put = many.put if isinstance(many, queues.Queue) else many.send
    for index in range(ITEMS):
        put((who, index, bytes([who]) * size))


def items_of(many: Any, way: str) -> Iterator[Any]:
    """What a consumer takes: by iteration, with short timeouts, or by `select`."""
    if way == "iterates":
        yield from many
        return
    take = many.get if isinstance(many, queues.Queue) else many.recv
    while True:
        began = time.monotonic()
        try:
            if way == "selects":
                select(many)
                item = take(timeout=0)
            else:
                item = take(timeout=SHORT_S)
        except (queue.Empty, TimeoutError):
            assert time.monotonic() - began < SHORT_S + SLACK_S
            continue
        except (queues.ShutDown, ChannelClosed):
            return
        yield item


def consume(many: Any, size: int, ledger: int, way: str) -> None:
    for who, index, content in items_of(many, way):
        assert content == bytes([who]) * size
        os.write(ledger, RECORD.pack(who, index))


def one_run(rng: random.Random, folder: Path) -> None:
    size = rng.choice([10, 10, 1000, 200_000])
    capacity = rng.choice([0, 0, 1, 7])
    many: Any = rng.choice([queues.Queue, queues.Queue, queues.JoinableQueue, Channel])(capacity)
    path = folder / "ledger"
    ledger = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
    ways = [rng.choice(["iterates", "iterates", "selects", "times out"]) for _ in range(2)]
    consumers = [fork(consume, many, size, ledger, way) for way in ways]
    producers = [fork(produce, many, who, size) for who in range(2)]
    victim = rng.choice([*producers, *consumers])
    time.sleep(rng.random() * rng.choice([0.002, 0.02]))  # the random moment; nothing waits for it
    os.kill(victim, signal.SIGKILL)
    for pid in producers:
        _, status = os.waitpid(pid, 0)
        assert status == 0 or pid == victim
    if isinstance(many, Channel):
        many.close()
    else:
        many.shutdown()
    for pid in consumers:
        _, status = os.waitpid(pid, 0)
        assert status == 0 or pid == victim
    left = [(who, index) for who, index, _ in many]
    os.close(ledger)
    seen = [*RECORD.iter_unpack(path.read_bytes()), *left]
    assert len(seen) == len(set(seen)), "an item arrived twice"
    missing = 0
    for who, pid in enumerate(producers):
        own = sorted(index for producer, index in seen if producer == who)
        wanted = ITEMS if pid != victim else (own[-1] + 1 if own else 0)
        missing += wanted - len(own)
    assert missing <= (1 if victim in consumers else 0), f"{missing} items were lost"


@pytest.mark.timeout(60 + RUNS)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_killed_party_costs_its_own_item_at_most(batch: int, rng: random.Random, tmp_path: Path) -> None:
    for _ in range(RUNS // BATCHES):
        one_run(rng, tmp_path)
