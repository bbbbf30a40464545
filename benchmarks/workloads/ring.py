"""64 bytes to another process and back, from Python: the rings under a pool alone, against a Pipe of the others."""

from __future__ import annotations

import os
import struct
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks.clock import middle, sample
from benchmarks.spec import Measure, Workload

if TYPE_CHECKING:
    from benchmarks.spec import Run

MESSAGE = b"m" * 64
ASLEEP_NS = 300_000  # a receiver that has waited so long does not spin any more


def answer(tasks: Any, results: Any) -> None:
    """The worker: what it gets, it sends back, until it is told to stop."""
    while True:
        claimed = tasks.claim(0)
        if claimed is not None:
            came_ns = time.monotonic_ns()
            data = claimed[3]
            results.put_plain(claimed[0], 0, 0, data if len(data) == len(MESSAGE) else struct.pack("q", came_ns))
            tasks.done(0, 0, 1)
            tasks.notify()
        elif tasks.stopped(0):
            return
        else:
            tasks.wait_task(0)


def came(record: tuple[Any, ...]) -> int:
    """When the worker had the message that a record answers."""
    when: int = struct.unpack("q", record[-1][0])[0]
    return when


def through_pipe(run: Run) -> dict[str, float]:
    """The same, through what everybody has."""
    here, there = run.peer.context().Pipe()
    child = os.fork()
    if child == 0:
        try:
            while message := there.recv_bytes():
                there.send_bytes(message)
        finally:
            os._exit(0)

    def round_trip() -> None:
        here.send_bytes(MESSAGE)
        here.recv_bytes()

    for _ in range(run.size(1000, 10)):
        round_trip()
    seconds = middle(sample(round_trip, seconds=run.seconds(1.0), least=5))
    here.send_bytes(b"")
    os.waitpid(child, 0)
    return {"each": seconds * 1e6}


def run(run: Run) -> dict[str, float]:
    if run.peer.module != "manycore":
        return through_pipe(run)
    rings = import_module("manycore._native.ring")
    segments = import_module("manycore._memory.segment")
    memory = segments.Segment.create(rings.TaskRing.nbytes(64))
    back = segments.Segment.create(1 << 16)
    tasks = rings.TaskRing(memory.buffer, 64)
    results = rings.ResultRing(back.buffer, create=True)
    child = os.fork()
    if child == 0:
        try:
            answer(rings.TaskRing(memory.buffer), rings.ResultRing(back.buffer, bell=tasks))
        finally:
            os._exit(0)
    turn = rings.Turn(tasks)
    count = 0

    def round_trip() -> None:
        nonlocal count
        count += 1
        tasks.publish(count, 0, 0, b"", MESSAGE)
        records: list[Any] = []
        while not results.take(records):
            tasks.wait([results], tasks.alarms(), None)

    with turn:
        for _ in range(run.size(1000, 10)):
            round_trip()
        seconds = middle(sample(round_trip, seconds=run.seconds(1.0), least=5))
        blocked = []
        for _ in range(run.size(2000, 5)):
            asleep_ns = time.monotonic_ns() + ASLEEP_NS
            while time.monotonic_ns() < asleep_ns:  # this side stays awake, so that only the receiver's waking counts
                pass
            count += 1
            records: list[Any] = []
            sent_ns = time.monotonic_ns()
            tasks.publish(count, 0, 0, b"", MESSAGE[1:])
            while not results.take(records):
                tasks.wait([results], tasks.alarms(), None)
            blocked.append(came(records[0]) - sent_ns)
    tasks.stop(0)
    os.waitpid(child, 0)
    return {"each": seconds * 1e6, "blocked": 2 * middle(blocked) / 1e3}


WORKLOAD = Workload(
    "ring",
    "primitive",
    (
        Measure(
            "each", "64 bytes to another process and back (manycore: its rings; others: a Pipe)", "us", "lower", goal=3
        ),
        Measure("blocked", "same to a receiver that sleeps, twice one way (futex: see limits)", "us", "lower"),
    ),
    run,
)
