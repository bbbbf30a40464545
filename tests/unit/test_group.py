"""`Group`: the block, its first failure, its deadline."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from typing import Any

import pytest

import manycore
from manycore import Group


def double(value: int) -> int:
    return 2 * value


def fail(text: str) -> None:
    raise ValueError(text)


def stay() -> None:
    threading.Event().wait()


def stay_deaf(said: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    said.send_bytes(b"deaf")
    stay()


def die(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.fixture(params=["zygote", "fork"])
def context(request: pytest.FixtureRequest) -> Any:
    return manycore.get_context(request.param)


def test_the_block_waits(context: Any) -> None:
    with Group(context=context) as group:
        processes = [group.start(double, i) for i in range(3)]
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [process.result() for process in processes] == [0, 2, 4]


def test_an_empty_block() -> None:
    with Group():
        pass


def test_the_first_failure_stops_the_rest_and_is_raised(context: Any) -> None:
    with pytest.raises(ValueError, match="a reason"), Group(context=context) as group:
        others = [group.start(stay) for _ in range(2)]
        group.start(fail, "a reason")
    assert [process.exitcode for process in others] == [-signal.SIGTERM] * 2


def test_a_death_stops_the_rest(context: Any) -> None:
    with pytest.raises(manycore.WorkerDied, match="SIGSEGV") as caught, Group(context=context) as group:
        group.start(stay)
        group.start(die, signal.SIGSEGV)
    assert caught.value.certificate.exitcode == -signal.SIGSEGV


def test_a_failure_without_a_result_says_how_it_ended(context: Any) -> None:
    message = r"^the one \(pid \d+\) died: exit code 1$"
    with pytest.raises(manycore.WorkerDied, match=message) as caught, Group(context=context) as group:
        other = group.start(stay)
        group.add(context.Process(target=fail, args=("a reason",), name="the one"))
    assert caught.value.certificate.exitcode == 1
    assert other.exitcode == -signal.SIGTERM


def test_a_death_without_a_result_says_how_it_ended(context: Any) -> None:
    with pytest.raises(manycore.WorkerDied, match="SIGKILL") as caught, Group(context=context) as group:
        group.add(context.Process(target=die, args=(signal.SIGKILL,)))
    assert caught.value.certificate.exitcode == -signal.SIGKILL


def test_a_standard_process_may_be_added() -> None:
    with pytest.raises(manycore.WorkerDied, match="exit code 1"), Group() as group:
        group.add(multiprocessing.get_context("fork").Process(target=fail, args=("a reason",)))


def fail_when_stopped(said: Any) -> None:
    signal.signal(signal.SIGTERM, lambda *_: fail("while it was stopped"))
    said.send_bytes(b"ready")
    stay()


def exit_when_stopped(said: Any) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    said.send_bytes(b"ready")
    stay()


def test_failures_of_several_are_a_group(context: Any) -> None:
    here, there = multiprocessing.Pipe()
    with pytest.raises(ExceptionGroup, match="2 processes failed") as caught, Group(context=context) as group:
        group.start(fail_when_stopped, there)
        assert here.recv_bytes() == b"ready"
        obedient = group.start(exit_when_stopped, there)
        assert here.recv_bytes() == b"ready"
        group.start(fail, "a reason")
    assert sorted(str(error) for error in caught.value.exceptions) == ["a reason", "while it was stopped"]
    assert {type(error) for error in caught.value.exceptions} == {ValueError}
    assert obedient.exitcode == 3
    here.close()
    there.close()


def test_what_the_block_raises_stops_all() -> None:
    with pytest.raises(KeyError), Group() as group:
        process = group.start(stay)
        raise KeyError
    assert process.exitcode == -signal.SIGTERM


def test_cancel_is_no_error() -> None:
    with Group() as group:
        process = group.start(stay)
        group.cancel()
        with pytest.raises(RuntimeError, match="cancelled"):
            group.start(stay)
    assert process.exitcode == -signal.SIGTERM


def test_the_deadline() -> None:
    begin = time.monotonic()
    late = r"^group: stopped after 0\.2 s, when group-stay-1 still ran$"
    with pytest.raises(multiprocessing.TimeoutError, match=late), Group(timeout=0.2) as group:
        process = group.start(stay)
    assert process.exitcode == -signal.SIGTERM
    assert time.monotonic() - begin < 30


def test_the_deadline_is_the_blocks_own() -> None:
    with pytest.raises(multiprocessing.TimeoutError, match="when no process still ran"), Group(timeout=0.05) as group:
        while not group.cancelled:
            select.poll().poll(5)


def test_deaf_and_stopped_processes_are_killed(context: Any) -> None:
    here, there = multiprocessing.Pipe()
    with Group(grace=0.1, context=context) as group:
        deaf = group.start(stay_deaf, there)
        stopped = group.start(stay)
        assert here.recv_bytes() == b"deaf"
        os.kill(stopped.pid, signal.SIGSTOP)
        group.cancel()
    assert deaf.exitcode == -signal.SIGKILL
    assert stopped.exitcode in {-signal.SIGTERM, -signal.SIGKILL}
    here.close()
    there.close()


def test_start_needs_the_block() -> None:
    with pytest.raises(RuntimeError, match="within its block"):
        Group().start(double, 1)


def test_threads_may_start_processes_while_the_block_ends() -> None:
    started: list[Any] = []
    with Group() as group:
        go = threading.Event()

        def start() -> None:
            go.wait()
            started.extend(group.start(double, i) for i in range(5))

        thread = threading.Thread(target=start)
        thread.start()
        group.start(double, 1)
        go.set()
        thread.join()
    assert [process.result() for process in started] == [0, 2, 4, 6, 8]


def test_a_process_that_was_closed_is_not_waited_for(context: Any) -> None:
    for _ in range(10):
        with Group(timeout=20, context=context) as group:
            process = group.start(double, 1)
            process.join()
            process.close()


def fail_to_find(name: str) -> None:
    raise AttributeError(name)


def test_what_a_process_raised_that_was_closed_is_raised(context: Any) -> None:
    for _ in range(3):
        with pytest.raises(AttributeError, match=r"^a name$"), Group(timeout=20, context=context) as group:
            process = group.start(fail_to_find, "a name")
            process.join()
            process.close()


def test_how_a_process_died_that_was_closed_is_known(context: Any) -> None:
    message = r"\(pid \d+\) died: exit code 3"
    with pytest.raises(manycore.WorkerDied, match=message) as caught, Group(timeout=20, context=context) as group:
        process = group.start(sys.exit, 3)
        process.join()
        process.close()
    assert caught.value.certificate.exitcode == 3
