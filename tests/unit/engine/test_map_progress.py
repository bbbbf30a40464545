"""Every map says how far it is, in the same words."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import manycore
from manycore._engine.mapping import MapOptions
from manycore._observe import progress as module

Seen = list[manycore.Progress]


@pytest.fixture(autouse=True)
def _every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CALL_INTERVAL_S", 0.0)


def odd_only(n: int) -> int:
    if n % 2 == 0:
        raise ValueError(n)
    return n


def drained(results: Any) -> None:
    while True:
        try:
            next(results)
        except StopIteration:
            return
        except ValueError:
            pass


def awaited(results: Any) -> None:
    async def main() -> None:
        while True:
            try:
                async for _ in results:
                    pass
                return
            except ValueError:
                pass

    asyncio.run(main())


Pool, Executor = manycore.Pool, manycore.ProcessPoolExecutor
ITEMS = range(10)
MAPS: dict[str, Callable[[Any, Any, Any], object]] = {
    "map": lambda pool, _, told: pool.map(odd_only, ITEMS, on_error="skip", progress=told),
    "starmap": lambda pool, _, told: pool.starmap(odd_only, [(n,) for n in ITEMS], on_error="skip", progress=told),
    "imap": lambda pool, _, told: drained(pool.imap(odd_only, ITEMS, progress=told)),
    "imap, awaited": lambda pool, _, told: awaited(pool.imap(odd_only, ITEMS, progress=told)),
    "imap_unordered": lambda pool, _, told: drained(pool.imap_unordered(odd_only, ITEMS, progress=told)),
    "outcomes": lambda pool, _, told: list(pool.outcomes(odd_only, ITEMS, progress=told)),
    "manycore.map": lambda *args: manycore.map(odd_only, ITEMS, on_error="skip", progress=args[2], workers=2),
    "manycore.imap": lambda *args: list(manycore.imap(odd_only, ITEMS, on_error="skip", progress=args[2], workers=2)),
}


@pytest.mark.parametrize("name", MAPS)
def test_every_map_tells(name: str) -> None:
    seen: Seen = []
    with Pool(2) as pool:
        MAPS[name](pool, None, seen.append)
    last = seen[-1]
    assert (last.done, last.failed, last.total, last.workers, last.finished) == (10, 5, 10, 2, True)
    assert [one.finished for one in seen[:-1]] == [False] * (len(seen) - 1)
    assert len(seen) >= 5
    assert [one.done for one in seen] == sorted(one.done for one in seen)


@pytest.mark.parametrize("kind", ["map_async", "starmap_async", "executor", "executor, lazy", "executor, awaited"])
def test_those_that_stop_at_an_error_tell_too(kind: str) -> None:
    seen: Seen = []
    with Pool(2) as pool, Executor(2) as executor:
        if kind == "map_async":
            assert pool.map_async(abs, ITEMS, progress=seen.append).get(30) == list(ITEMS)
        elif kind == "starmap_async":
            assert pool.starmap_async(pow, [(n, 1) for n in ITEMS], progress=seen.append).get(30) == list(ITEMS)
        elif kind == "executor":
            assert list(executor.map(abs, ITEMS, progress=seen.append)) == list(ITEMS)
        elif kind == "executor, lazy":
            assert list(executor.map(abs, iter(ITEMS), buffersize=3, progress=seen.append)) == list(ITEMS)
        else:
            awaited(executor.map(abs, ITEMS, progress=seen.append))
    last = seen[-1]
    assert (last.done, last.failed, last.workers, last.finished) == (10, 0, 2, True)
    assert last.total == (None if kind == "executor, lazy" else 10)


def test_a_map_that_fails_says_its_last_word() -> None:
    seen: Seen = []
    with pytest.raises(ValueError, match="0"):
        manycore.map(odd_only, ITEMS, workers=2, progress=seen.append)
    assert seen[-1].finished
    assert 1 <= seen[-1].failed <= 5


def test_a_pools_map_that_fails_tells_of_all_its_items() -> None:
    seen: Seen = []
    with Pool(2) as pool:
        with pytest.raises(ValueError, match=r"\d"):
            pool.map(odd_only, ITEMS, progress=seen.append)
        assert seen[-1].finished
        assert (seen[-1].done, seen[-1].failed) == (10, 5)


def test_items_count_though_one_before_them_is_not_done() -> None:
    """Else a long item at the head of a map would leave the bar where it was until the very end."""
    with Pool(2) as pool:
        free = manycore.Event()
        run = pool._run(lambda n: free.wait(30) if n == 0 else n, range(10), MapOptions(chunksize=1), lambda _: None)
        reporter = run.reporter
        run.start()
        while reporter.snapshot().done < 9:
            with pytest.raises(TimeoutError):
                run.next_outcome(time.monotonic() + 0.01)
        free.set()
        outcomes = [run.next_outcome() for _ in range(11)]
        assert [outcome.index for outcome in outcomes if outcome is not None] == list(range(10))
        assert reporter.snapshot().done == 10


def test_a_map_that_is_dropped_leaves_no_thread(capsys: pytest.CaptureFixture[str]) -> None:
    with Pool(2) as pool:
        before = threading.active_count()
        results = pool.imap(abs, range(1000), progress=True)
        next(results)
        assert threading.active_count() == before + 1
        del results
        for thread in threading.enumerate():
            if thread.name == "manycore-progress":
                thread.join(10)
        assert threading.active_count() == before


PROGRAM = """
import time
import manycore

def rest(n):
    time.sleep(0.02)
    if n == 7:
        raise ValueError(n)

with manycore.Pool(2) as pool:
    pool.map(rest, range(80), on_error="skip", progress="resting")
"""


def test_a_terminal_gets_a_bar() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    running = subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=theirs, env=environment)
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 65536):
            parts.append(part)
    except OSError:  # the last one who had the other end has gone
        pass
    os.close(ours)
    assert running.wait() == 0
    shown = b"".join(parts).decode()
    assert "resting" in shown
    assert "80/80" in shown
    assert "1 failed" in shown
    assert "2 of 2 busy" in shown
    assert " left" in shown
    assert "/s" in shown


def test_a_log_gets_no_bar() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    assert done.stderr == b""  # less than a minute


def test_what_is_no_progress_is_refused() -> None:
    with manycore.Pool(1) as pool, pytest.raises(TypeError, match="progress must be"):
        pool.map(abs, [1], progress=5)
