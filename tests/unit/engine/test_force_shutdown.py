"""`terminate_workers` and `kill_workers`: SIGTERM or SIGKILL; what was not begun is cancelled, what was is broken."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import threading
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import FrameType

import pytest

import manycore
from manycore._engine import workforce


def leave_word(folder: str) -> None:
    def heard(_signum: int, _frame: FrameType | None) -> None:
        Path(folder, "heard").touch()
        os._exit(0)

    signal.signal(signal.SIGTERM, heard)


def ignore_term() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def at_work(executor: manycore.ProcessPoolExecutor, folder: Path) -> list[concurrent.futures.Future[None]]:
    """One call that the only worker is at, and five behind it."""
    fifo = folder / "begun"
    os.mkfifo(fifo)
    futures: list[concurrent.futures.Future[None]] = [executor.submit(open_and_rest, str(fifo)) for _ in range(6)]
    with open(fifo, "rb") as file:
        assert file.read(1) == b"!"
    return futures


def open_and_rest(path: str) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(b"!")
        while True:
            signal.pause()


@pytest.mark.parametrize("name", ["terminate_workers", "kill_workers"])
def test_what_was_begun_is_broken_and_the_rest_cancelled(name: str, tmp_path: Path) -> None:
    with manycore.ProcessPoolExecutor(1, initializer=leave_word, initargs=(str(tmp_path),)) as executor:
        futures = at_work(executor, tmp_path)
        (pid,) = executor.stats().pids
        getattr(executor, name)()
        with pytest.raises(BrokenProcessPool, match="its workers were"):
            futures[0].result(10)
        assert all(future.cancelled() for future in futures[1:])
        with pytest.raises(RuntimeError):
            executor.submit(abs, 1)
        assert not Path(f"/proc/{pid}").exists()
        assert (tmp_path / "heard").exists() == (name == "terminate_workers")


def test_a_worker_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workforce, "STOP_GRACE", 0.2)
    with manycore.ProcessPoolExecutor(1, initializer=ignore_term) as executor:
        at_work(executor, tmp_path)
        (pid,) = executor.stats().pids
        executor.terminate_workers()
        assert not Path(f"/proc/{pid}").exists()


def test_an_executor_without_workers_has_none_to_end() -> None:
    executor = manycore.ProcessPoolExecutor(1)
    executor.kill_workers()
    executor.kill_workers()
    executor.shutdown()


def test_an_end_amid_the_start_in_another_thread_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    starting, go_on = threading.Event(), threading.Event()
    start = threading.Thread.start

    def start_late(thread: threading.Thread) -> None:
        if thread.name.startswith("manycore "):  # the collector of an engine
            starting.set()
            assert go_on.wait(30)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_late)
    errors: list[BaseException] = []
    monkeypatch.setattr(threading, "excepthook", lambda what: errors.append(what.exc_value))
    executor = manycore.ProcessPoolExecutor(1)
    user = threading.Thread(target=lambda: executor.submit(abs, -1))
    user.start()
    assert starting.wait(30)
    ender = threading.Thread(target=lambda: executor.shutdown(cancel_futures=True))
    ender.start()
    ender.join(0.2)  # it waits for the start, or has failed
    go_on.set()
    for thread in (user, ender):
        thread.join(30)
        assert not thread.is_alive()
    assert not any("join" in str(error) for error in errors), errors  # the call itself may have come too late
