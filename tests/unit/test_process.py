"""`Process`: what it has beyond the standard interface, under every start method."""

from __future__ import annotations

import errno
import itertools
import logging
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from typing import Any

import pytest

import manycore
from manycore.context import BaseContext

METHODS = ["zygote", "fork", "spawn", "forkserver"]


@pytest.fixture(params=METHODS)
def context(request: pytest.FixtureRequest) -> Any:
    return manycore.get_context(request.param)


@pytest.fixture(scope="module", autouse=True)
def no_standard_helpers_left() -> Iterator[None]:
    """The standard fork server and resource tracker would live until this process exits."""
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def double(value: int) -> int:
    return 2 * value


def fail(text: str) -> None:
    raise ValueError(text)


def where() -> tuple[str, str | None, set[int], int]:
    return os.getcwd(), os.environ.get("ONLY"), os.sched_getaffinity(0), os.nice(0)


def allocate(size: int) -> int:
    return len(bytearray(size))


def stay(said: Any) -> None:
    said.send_bytes(b"here")
    threading.Event().wait()


def stay_deaf(said: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stay(said)


def stay_with_child(said: Any, deaf: bool) -> None:
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = os.fork()
    if not child:
        os.execlp("sleep", "sleep", "1000")
    said.send_bytes(str(child).encode())
    threading.Event().wait()


def loop_in_c(said: Any) -> None:
    said.send_bytes(b"here")
    all(itertools.repeat(True))  # never gives up the interpreter lock


def wait_for_interrupt(said: Any) -> str:
    try:
        stay(said)
    except KeyboardInterrupt:
        return "interrupted"
    return "not"


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)


def raise_unpicklable() -> None:
    raise Unpicklable(1, 2)


def make_locks() -> dict[str, Any]:
    return {"locks": (1, threading.Lock())}


class Subclass(manycore.Process):
    def run(self) -> Any:
        return 5


def started(context: Any, target: Any, **options: Any) -> Any:
    here, there = multiprocessing.Pipe(duplex=False)
    process = context.Process(target=target, args=(there,), **options)
    process.start()
    there.close()
    assert here.recv_bytes() == b"here"
    here.close()
    return process


class TestResult:
    def test_value(self, context: Any) -> None:
        process = context.Process(target=double, args=(21,), result=True)
        process.start()
        assert process.result(30) == 42
        assert process.exitcode == 0

    def test_exception_with_its_traceback(self, context: Any) -> None:
        process = context.Process(target=fail, args=("a reason",), result=True)
        process.start()
        with pytest.raises(ValueError, match="a reason") as caught:
            process.result(30)
        assert "in fail" in str(caught.value.__cause__)
        assert process.exitcode == 1

    def test_exception_that_cannot_be_rebuilt(self, context: Any) -> None:
        process = context.Process(target=raise_unpicklable, result=True)
        process.start()
        with pytest.raises(manycore.ResultPicklingError, match="in raise_unpicklable"):
            process.result(30)

    def test_value_that_cannot_be_pickled(self, context: Any) -> None:
        for target, name in ((threading.Lock, "result"), (make_locks, r"result\['locks'\]\[1\]")):
            process = context.Process(target=target, result=True)
            process.start()
            with pytest.raises(manycore.ResultPicklingError, match=f"^{name}: cannot pickle"):
                process.result(30)

    def test_death(self, context: Any) -> None:
        process = started(context, stay, result=True)
        with pytest.raises(multiprocessing.TimeoutError, match="still runs"):
            process.result(0)
        process.kill()
        with pytest.raises(manycore.WorkerDied, match="SIGKILL") as caught:
            process.result(30)
        assert caught.value.certificate.exitcode == -signal.SIGKILL

    def test_not_asked_for(self) -> None:
        process = manycore.Process(target=double, args=(1,))
        process.start()
        with pytest.raises(ValueError, match="without result=True"):
            process.result()
        process.join()

    def test_of_a_subclass(self) -> None:
        process = Subclass(result=True)
        process.start()
        assert process.result(30) == 5

    def test_of_a_lambda(self) -> None:
        process = manycore.Process(target=lambda x: x + 1, args=(1,), result=True)
        process.start()
        assert process.result(30) == 2


class TestSettings:
    def test_directory_environment_affinity_and_niceness(self, context: Any, tmp_path: Path) -> None:
        core = min(os.sched_getaffinity(0))
        process = context.Process(
            target=where, result=True, cwd=tmp_path, env={**os.environ, "ONLY": "yes"}, cpu_affinity=[core], nice=3
        )
        process.start()
        assert process.result(30) == (str(tmp_path), "yes", {core}, os.nice(0) + 3)

    def test_memory_limit(self, context: Any) -> None:
        process = context.Process(target=allocate, args=(1 << 33,), result=True, memory_limit=1 << 32)
        process.start()
        with pytest.raises(MemoryError):
            process.result(30)

    def test_what_cannot_be_set_is_the_result(self, context: Any, tmp_path: Path) -> None:
        process = context.Process(target=double, args=(1,), result=True, cwd=tmp_path / "nowhere")
        process.start()
        with pytest.raises(FileNotFoundError, match="nowhere"):
            process.result(30)

    @pytest.mark.parametrize("more", [[], [0]])
    def test_a_core_that_may_not_be_used(self, more: list[int]) -> None:
        """Also beside one that may: the kernel would take that one alone."""
        cores = [1000, *(more and [min(os.sched_getaffinity(0))])]
        process = manycore.Process(target=double, args=(1,), result=True, cpu_affinity=cores)
        process.start()
        with pytest.raises(OSError, match=r"cpu_affinity: .* cores \[1000\]"):
            process.result(30)

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"nice": "x"}, TypeError),
            ({"nice": 1.5}, TypeError),
            ({"memory_limit": -5}, ValueError),
            ({"memory_limit": 0}, ValueError),
            ({"memory_limit": "1G"}, TypeError),
            ({"cwd": 5}, TypeError),
            ({"env": 5}, TypeError),
            ({"env": {"NAME": 1}}, TypeError),
            ({"env": {1: "value"}}, TypeError),
            ({"cpu_affinity": 0}, TypeError),
            ({"cpu_affinity": "01"}, TypeError),
            ({"cpu_affinity": []}, ValueError),
            ({"cpu_affinity": [-1]}, ValueError),
            ({"on_death": 5}, TypeError),
        ],
    )
    def test_wrong_ones_are_noticed_at_once(self, options: Any, error: Any) -> None:
        with pytest.raises(error, match=f"{next(iter(options))} must"):
            manycore.Process(target=double, args=(1,), **options)

    def test_a_message_shows_no_value_of_the_environment(self) -> None:
        with pytest.raises(TypeError, match="TOKEN") as caught:
            manycore.Process(target=double, env={"TOKEN": b"secret"})  # type: ignore[dict-item]
        assert "secret" not in str(caught.value)


class TestEnding:
    def test_terminate_with_grace_ends_a_deaf_process(self, context: Any) -> None:
        process = started(context, stay_deaf)
        process.terminate(grace=0.05)
        assert process.exitcode == -signal.SIGKILL

    def test_terminate_with_grace_ends_a_stopped_process(self, context: Any) -> None:
        process = started(context, stay)
        os.kill(process.pid, signal.SIGSTOP)
        process.terminate(grace=5)
        assert process.exitcode in {-signal.SIGTERM, -signal.SIGKILL}

    @pytest.mark.parametrize("deaf", [False, True])
    def test_terminate_with_grace_takes_its_children_along(self, deaf: bool, context: Any) -> None:
        here, there = multiprocessing.Pipe(duplex=False)
        process = context.Process(target=stay_with_child, args=(there, deaf))
        process.start()
        there.close()
        child = os.pidfd_open(int(here.recv_bytes()))
        process.terminate(grace=0.1 if deaf else 30)
        assert process.exitcode == -(signal.SIGKILL if deaf else signal.SIGTERM)
        poller = select.poll()
        poller.register(child, select.POLLIN)
        assert poller.poll(30_000)
        os.close(child)
        here.close()

    def test_interrupt(self, context: Any) -> None:
        process = started(context, wait_for_interrupt, result=True)
        process.interrupt()
        assert process.result(30) == "interrupted"

    def test_certificate(self, context: Any) -> None:
        process = started(context, stay)
        assert process.certificate is None
        process.kill()
        process.join(30)
        certificate: Any = process.certificate
        assert certificate.exitcode == process.exitcode == -signal.SIGKILL
        assert certificate.pid == process.pid

    def test_on_death(self) -> None:
        seen: list[Any] = []
        called = threading.Event()

        def on_death(process: Any) -> None:
            seen.append(process)
            called.set()

        process = manycore.Process(target=double, args=(1,), on_death=on_death)
        process.start()
        assert called.wait(30)
        assert seen == [process]
        process.join()


def test_stack_of_a_process_that_is_stuck_in_c(context: Any) -> None:
    process = started(context, loop_in_c)
    assert "in loop_in_c" in process.stack(30)
    assert process.is_alive()
    assert "in loop_in_c" in process.stack(30)
    process.kill()
    process.join(30)


def stay_stopped(said: Any) -> None:
    said.send_bytes(b"here")
    os.kill(os.getpid(), signal.SIGSTOP)


def stay_masked(said: Any) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    stay(said)


@pytest.mark.parametrize(
    ("target", "why"), [(stay_stopped, "it is stopped"), (stay_masked, "its threads block signal 62")]
)
def test_stack_of_a_process_that_cannot_answer(target: Any, why: str) -> None:
    process = started(manycore, target)
    while target is stay_stopped and " T " not in Path(f"/proc/{process.pid}/stat").read_text():
        select.poll().poll(5)
    with pytest.raises(TimeoutError, match=f"within 0.1 s: {why}$"):
        process.stack(0.1)
    process.kill()
    process.join(30)
    with pytest.raises(LookupError):
        process.stack()


def log_a_line() -> None:
    manycore.get_logger().warning("a line")


@pytest.mark.parametrize("method", ["zygote", "fork", "spawn"])  # a fork server has the standard error of its own start
def test_the_names_in_logs(method: str, capfd: pytest.CaptureFixture[str]) -> None:
    logger = manycore.log_to_stderr(logging.WARNING)
    try:
        process = manycore.get_context(method).Process(target=log_a_line, name="by name")
        process.start()
        process.join(30)
    finally:
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        util._log_to_stderr = False  # type: ignore[attr-defined]
    assert "[WARNING/by name] a line" in capfd.readouterr().err


def title_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


def test_title(context: Any) -> None:
    name = "by a name that is longer than the command line of many a program" * 2
    process = started(context, stay, name=name)
    assert title_of(process.pid) == f"manycore: process '{name}' of {os.getpid()} [stay]"
    assert b"\0PATH=" in b"\0" + Path(f"/proc/{process.pid}/environ").read_bytes()  # which lies behind argv
    process.kill()
    process.join(30)


def test_title_where_the_kernel_gives_no_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), size)

    monkeypatch.setattr("manycore._native.title.make_room", refuse)
    process = started(manycore.get_context("fork"), stay, name="by name")
    title = title_of(process.pid)
    assert title.startswith("manycore: ")
    assert f"manycore: process 'by name' of {os.getpid()} [stay]".startswith(title)
    process.kill()
    process.join(30)


def title_while_it_runs() -> str:
    return title_of(os.getpid())


def test_a_workers_title_says_the_task(context: Any) -> None:
    with context.Pool(1, name="resize") as pool:
        assert pool.apply(title_while_it_runs) == "manycore: worker 0 of pool 'resize' [running title_while_it_runs]"


def nested() -> Any:
    process = manycore.Process(target=double, args=(4,), result=True)
    process.start()
    return process.result(30)


def test_a_daemonic_process_may_have_children(context: Any) -> None:
    process = context.Process(target=nested, daemon=True, result=True)
    process.start()
    assert process.result(60) == 8


def test_either_library_sees_the_others_processes() -> None:
    process = started(manycore, stay)
    assert process in multiprocessing.active_children()
    assert isinstance(process, multiprocessing.process.BaseProcess)
    assert isinstance(manycore.get_context(), BaseContext)
    assert isinstance(manycore.get_context(), multiprocessing.context.BaseContext)
    process.kill()
    process.join(30)
    assert process not in manycore.active_children()


def test_exit_code_when_somebody_else_reaps(context: Any) -> None:
    process = context.Process(target=sys.exit, args=(7,))
    process.start()
    try:
        os.waitid(os.P_PIDFD, process.sentinel, os.WEXITED)
    except ChildProcessError:
        pass  # not this process's child at all
    process.join(30)
    assert not process.is_alive()
    assert process.exitcode == 7


def test_exit_code_when_sigchld_is_ignored(context: Any) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process = context.Process(target=sys.exit, args=(7,))
        process.start()
        process.join(30)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert process.exitcode == 7


def test_start_is_quick_enough_to_not_be_a_fresh_interpreter() -> None:
    manycore.Process(target=double, args=(1,)).start()
    best = min(_seconds_of_one() for _ in range(20))
    assert best < 0.05


def _seconds_of_one() -> float:
    begin = time.perf_counter()
    process = manycore.Process(target=os.getpid)
    process.start()
    process.join()
    return time.perf_counter() - begin


def test_an_object_that_outlives_the_module_is_silent() -> None:
    program = """
import manycore
process = manycore.Process(target=lambda: 1, result=True)
process.start()
print(process.result(30))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "")
