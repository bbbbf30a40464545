"""What `ps` shows of a worker: its pool, and the task that it runs now."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import manycore
from manycore._native import process
from manycore._native.ring import TaskRing

Line = dict[str, Any]


def title(pid: int | str = "self") -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


def rest(seconds: float) -> str:
    time.sleep(seconds)
    return title()


def of_item(_: int) -> str:
    return title()


def a_function_whose_name_is_longer_than_any_line_of_ps_has_room_for_it(_: int) -> str:
    return title()


def retitle(text: str) -> str:
    """As setproctitle does: over the whole of it."""
    address, room = process.title_room()
    end = b"of pool 'titles'"
    shown = ctypes.string_at(address - len(end), len(end))
    assert shown == end
    ctypes.memmove(address - len(end), text.encode(), len(text))
    ctypes.memset(address - len(end) + len(text), 0, room + len(end) - len(text))
    return title()


def test_a_title_shows_the_task_while_it_runs() -> None:
    with manycore.Pool(1, name="titles") as pool:
        base = "manycore: worker 0 of pool 'titles'"
        assert pool.apply(rest, (0,)) == f"{base} [running rest]"
        assert set(pool.map(of_item, range(100))) == {f"{base} [running of_item]"}
        assert pool.apply(lambda: title()) == f"{base} [running {_name()}.<lambda>]"
        longest = pool.map(a_function_whose_name_is_longer_than_any_line_of_ps_has_room_for_it, [0])[0]
        assert longest.startswith(f"{base} [running a_function_whose")
        assert longest.endswith("]")
        assert pool.apply(rest, (0,)) == f"{base} [running rest]"  # nothing is left of the longer one
        pid = pool.stats().pids[0]
        _until(lambda: title(pid) == base)
        running = pool.apply_async(rest, (60,))
        _until(lambda: title(pid) == f"{base} [running rest]")
        assert not running.ready()


def _name() -> str:
    return "test_a_title_shows_the_task_while_it_runs"


def _until(condition: Any) -> None:
    while not condition():  # the test's own limit bounds it
        time.sleep(0.001)


def test_a_task_that_sets_the_title_keeps_it() -> None:
    with manycore.Pool(1, name="titles") as pool:
        pool.apply(of_item, (0,))
        assert pool.apply(retitle, ("is mine",)) == "manycore: worker 0 is mine"
        assert pool.apply(of_item, (0,)) == "manycore: worker 0 is mine"
        assert title(pool.stats().pids[0]) == "manycore: worker 0 is mine"


@pytest.mark.parametrize("face", [manycore.Pool, manycore.ProcessPoolExecutor])
def test_ps_shows_the_task(face: Any) -> None:
    with face(1, name="shown") as pool:
        if face is manycore.Pool:
            pool.apply_async(rest, (60,))
        else:
            pool.submit(rest, 60)
        _until(lambda: pool.stats().workers_busy == 1 and len(pool.stats().pids) == 1)
        _until(lambda: title(pool.stats().pids[0]).endswith("]"))
        done = subprocess.run([sys.executable, "-m", "manycore", "ps", "--json"], capture_output=True, check=True)
        lines: list[Line] = [json.loads(line) for line in done.stdout.splitlines()]
        shown = next(line for line in lines if line["pid"] == pool.stats().pids[0])
        assert (shown["role"], shown["title"], shown["task"]) == ("worker", "worker 0 of pool 'shown'", "running rest")
        (pool.terminate if face is manycore.Pool else pool.terminate_workers)()


def test_a_ring_without_a_title_posts_nothing() -> None:
    ring = TaskRing(memoryview(bytearray(TaskRing.nbytes(4))), 4)
    ring.post(0, 0, b" [running f]")
    ring.begin(0, 0)
    ring.done(0, 1, 1)
