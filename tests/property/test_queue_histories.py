"""Are queues and channels between processes linearizable? An order is sought that explains each recorded history.

Each process notes when each of its calls began and ended, by the one monotonic clock. A history is right when every
call can be given one instant between the two, so that in the order of these instants a plain first-in-first-out
queue of that capacity gives the same answers. `MANYCORE_HISTORIES=N` records more.

One thing is more than a queue does: a call with a timeout is over in time, also while another process that gets (or
puts) is stopped in the midst of it. So a call whose time ran out may have been refused whatever the queue held, where
others of its kind were at it all that time.

Source: Wing and Gong, "Testing and verifying concurrent objects"; Lowe's memory of configurations that were seen.
"""

from __future__ import annotations

import os
import pickle
import queue
import random
import sys
import time
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from manycore import Channel, queues

HISTORIES = int(os.environ.get("MANYCORE_HISTORIES", "40"))
CALLS = 12  # of each of three processes


class Call(NamedTuple):
    """One call: `item` was put or got, or was refused; `timed_out` where it had waited for that."""

    begin_ns: int
    end_ns: int
    puts: bool
    item: Any
    refused: bool
    timed_out: bool = False


def held_up(call: Call, calls: list[Call]) -> bool:
    """Whether its time ran out, in all of which others of its kind were at the queue."""
    if not call.timed_out:
        return False
    at = call.begin_ns
    for other in sorted(other for other in calls if other.puts == call.puts and other is not call):
        if other.begin_ns <= at < other.end_ns:
            at = other.end_ns
    return at >= call.end_ns


def explains(calls: list[Call], capacity: int) -> bool:
    """Whether some order of the calls, each within its own time, is one of a queue."""
    calls = sorted(calls)
    everything = (1 << len(calls)) - 1
    excused = {index for index, call in enumerate(calls) if held_up(call, calls)}
    seen: set[tuple[int, tuple[Any, ...]]] = set()
    todo: list[tuple[int, tuple[Any, ...]]] = [(0, ())]
    while todo:
        done, content = todo.pop()
        if done == everything:
            return True
        first_end = min(call.end_ns for index, call in enumerate(calls) if not done >> index & 1)
        for index, call in enumerate(calls):
            if done >> index & 1:
                continue
            if call.begin_ns > first_end:  # another one was over before it began
                break
            if call.puts:
                if call.refused != bool(capacity and len(content) >= capacity) and index not in excused:
                    continue
                after = content if call.refused else (*content, call.item)
            elif call.refused:
                if content and index not in excused:
                    continue
                after = content
            else:
                if not content or content[0] != call.item:
                    continue
                after = content[1:]
            state = (done | 1 << index, after)
            if state not in seen:
                seen.add(state)
                todo.append(state)
    return False


def perform(many: Any, who: int, seed: int) -> list[Call]:
    """Random calls of one process."""
    rng = random.Random(seed)
    calls = []
    put, get = (many.send, many.recv) if isinstance(many, Channel) else (many.put, many.get)
    for index in range(CALLS):
        puts = rng.random() < 0.5
        item: Any = (who, index)
        refused = False
        timeout = rng.choice([0, 0, 0.0005])
        begin = time.monotonic_ns()
        try:
            if puts:
                put(item, timeout=timeout)
            else:
                item = get(timeout=timeout)
        except (queue.Full, queue.Empty, TimeoutError):
            refused = True
        calls.append(Call(begin, time.monotonic_ns(), puts, item, refused, refused and timeout > 0))
    return calls


def record(many: Any, seed: int) -> list[Call]:
    """The history of three processes that begin together."""
    gate_read, gate_write = os.pipe()
    children = []
    for who in range(3):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(gate_write)
            os.read(gate_read, 1)
            os.write(write, pickle.dumps(perform(many, who, seed + who)))
            os._exit(0)
        os.close(write)
        children.append((pid, read))
    os.close(gate_read)
    os.close(gate_write)  # all begin
    calls = []
    for pid, read in children:
        with open(read, "rb") as file:
            calls += pickle.load(file)
        assert os.waitpid(pid, 0)[1] == 0
    return calls


@pytest.mark.timeout(60 + HISTORIES)
@pytest.mark.parametrize("kind", [queues.Queue, Channel])
def test_histories_of_several_processes_are_those_of_a_queue(kind: Any, rng: random.Random) -> None:
    sys.setswitchinterval(0.005)
    overlaps = 0
    for _ in range(HISTORIES):
        capacity = rng.choice([1, 2, 3, 0] if kind is queues.Queue else [1, 2, 3])
        calls = record(kind(capacity), rng.randrange(1 << 30))
        ordered = sorted(calls)
        overlaps += sum(one.end_ns > other.begin_ns for one, other in pairwise(ordered))
        assert explains(calls, capacity), f"capacity {capacity}:\n" + "\n".join(map(str, ordered))
    assert overlaps > HISTORIES


def test_the_search_tells_right_from_wrong() -> None:
    put, got = Call(0, 10, True, "a", False), Call(5, 15, False, "a", False)
    assert explains([put, got], 1)
    assert not explains([put, got._replace(end_ns=-1, begin_ns=-2)], 1)  # got before it was put
    assert not explains([put, got, got._replace(begin_ns=20, end_ns=30)], 1)  # twice
    second = Call(11, 12, True, "b", False)
    swapped = [Call(13, 14, False, "b", False), Call(15, 16, False, "a", False)]
    assert not explains([put, second, *swapped], 0)  # out of order
    assert explains([put, second._replace(refused=True)], 1)
    assert not explains([put, second], 1)  # it was full
    assert not explains([put, Call(11, 12, False, None, True)], 1)  # it was not empty
    assert explains([put, Call(5, 12, False, None, True)], 1)
    late, other = Call(13, 20, False, None, True, timed_out=True), Call(13, 30, False, "a", False)  # and "b" stays
    assert explains([put, second, late, other], 0)
    assert not explains([put, second, late._replace(timed_out=False), other], 0)
    assert not explains([put, second, late], 0)  # nobody else was at it
    assert not explains([put, second, late, other._replace(begin_ns=15)], 0)  # or not all the time
