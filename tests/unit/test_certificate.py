"""Certificates: what is known of a process's end, under every start method."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import pytest

import manycore
from manycore._launch import machine, oom, parent


@pytest.fixture(params=["zygote", "fork", "spawn", "forkserver"])
def context(request: pytest.FixtureRequest) -> Any:
    return manycore.get_context(request.param)


@pytest.fixture(scope="module", autouse=True)
def no_standard_helpers_left() -> Iterator[None]:
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def work(seconds: float, size: int) -> None:
    held = bytearray(size)
    until = time.process_time() + seconds
    while time.process_time() < until:
        held[0] = 1


def die(signum: int) -> None:
    os.kill(os.getpid(), signum)


def ended(process: Any) -> Any:
    process.start()
    process.join(30)
    assert process.certificate is not None
    return process.certificate


def test_time_and_memory(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent, "_REPORT_GRACE_S", 30.0)  # the zygote counts them, when it gets to it
    certificate = ended(context.Process(target=work, args=(0.1, 64 << 20)))
    assert certificate.exitcode == 0
    assert certificate.describe() == "exit code 0"
    assert certificate.signal_name is certificate.stack is certificate.native_stack is None
    assert certificate.oom is False
    assert certificate.wall_seconds >= 0.1
    if context._name != "forkserver":  # there the fork server is told, which passes on nothing but the exit code
        assert certificate.user_seconds + certificate.system_seconds >= 0.09
        assert certificate.peak_rss_bytes > 64 << 20


@pytest.fixture
def no_faulthandler() -> Iterator[None]:
    """A fork would keep it as it is."""
    was_on = faulthandler.is_enabled()
    faulthandler.disable()
    yield
    if was_on:
        faulthandler.enable()


@pytest.mark.usefixtures("no_faulthandler")
@pytest.mark.parametrize("signum", [signal.SIGSEGV, signal.SIGABRT])
def test_a_fatal_signal_leaves_the_stack(signum: int, context: Any) -> None:
    certificate = ended(context.Process(target=die, args=(signum,)))
    assert certificate.exitcode == -signum
    assert certificate.signal_name == signal.Signals(signum).name
    assert certificate.stack.startswith("Fatal Python error")
    assert "in die" in certificate.stack
    assert certificate.where.endswith(" in die")
    assert "\n" not in certificate.where  # nothing of what is behind it
    assert certificate.where in manycore.WorkerDied("", certificate).__notes__[0]


def test_a_signal_that_is_not_a_fault_leaves_none(context: Any) -> None:
    certificate = ended(context.Process(target=die, args=(signal.SIGTERM,)))
    assert (certificate.signal_name, certificate.stack, certificate.native_stack) == ("SIGTERM", None, None)


def read_nothing() -> None:
    ctypes.string_at(0)


def read_nothing_in_a_thread() -> None:
    thread = threading.Thread(target=read_nothing)
    thread.start()
    thread.join()


def abort() -> None:
    ctypes.CDLL(None).abort()


def call_nothing() -> None:
    ctypes.CFUNCTYPE(None)(1)()


def overflow() -> None:
    faulthandler._stack_overflow()  # type: ignore[attr-defined]


def smash() -> None:
    with open("/proc/self/maps", encoding="utf-8") as file:
        start, end = next(line.split()[0].split("-") for line in file if line.endswith("[stack]\n"))
    ctypes.memset(int(start, 16), 255, int(end, 16) - int(start, 16))


def fork_one_that_crashes() -> None:
    if os.fork() == 0:
        read_nothing()
    os.wait()
    abort()


@pytest.mark.usefixtures("no_faulthandler")
@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="stacks are walked by glibc")
@pytest.mark.parametrize(
    ("crash", "signum", "native"),
    [
        (read_nothing, signal.SIGSEGV, ("libc.so", "_ctypes.", "_PyEval_EvalFrameDefault")),
        (read_nothing_in_a_thread, signal.SIGSEGV, ("libc.so", "_ctypes.", "_PyEval_EvalFrameDefault")),
        (abort, signal.SIGABRT, ("abort+", "_ctypes.", "_PyEval_EvalFrameDefault")),
        (call_nothing, signal.SIGSEGV, ("[0x1]", "_ctypes.", "_PyEval_EvalFrameDefault")),
        (fork_one_that_crashes, signal.SIGABRT, ("abort+", "_ctypes.", "_PyEval_EvalFrameDefault")),
        (overflow, signal.SIGSEGV, ("python", "  ...")),
    ],
)
def test_a_crash_leaves_both_stacks(crash: Any, signum: int, native: Any, context: Any) -> None:
    certificate = ended(context.Process(target=crash))
    assert certificate.exitcode == -signum
    assert certificate.stack.startswith("Fatal Python error")
    assert f" in {crash.__name__.removesuffix('_in_a_thread')}" in certificate.stack
    found = (certificate.native_stack or "").splitlines()
    at = [next(i for i, line in enumerate(found) if part in line) for part in native]
    assert at == sorted(at)
    assert at[0] < 4  # nothing of the handler's own
    assert len(certificate.native_where.splitlines()) <= 11


@pytest.mark.usefixtures("no_faulthandler")
def test_a_crash_that_destroys_the_stack_leaves_a_true_certificate(context: Any) -> None:
    certificate = ended(context.Process(target=smash))
    assert certificate.exitcode == -signal.SIGSEGV
    assert certificate.stack.startswith("Fatal Python error")  # the interpreter's own record is on that stack


def test_a_worker_leaves_both_stacks(context: Any) -> None:
    with pytest.raises(manycore.WorkerDied) as caught, context.Pool(1) as pool:
        pool.apply(read_nothing)
    notes = "\n".join(caught.value.__notes__)
    assert " in read_nothing" in notes
    assert " in _ctypes." in notes
    assert "_PyEval" not in notes


def test_as_text_it_is_for_people() -> None:
    crashed = manycore.Certificate(
        812, "worker 0", -11, 1.5, 0.25, 12_300_000, 4.0, native_stack='Binary file "libx.so", at decode+0x1 [0x1]'
    )
    assert str(crashed).splitlines() == [
        "worker 0 (pid 812): SIGSEGV",
        "It ran for 4.00 s, with 1.75 s of processor time and 12.3 MB at the most.",
        "In native code (most recent call first):",
        "  decode+0x1 in libx.so",
    ]
    unknown = manycore.Certificate(812, "worker 0", 3, wall_seconds=4.0)
    assert str(unknown).splitlines() == ["worker 0 (pid 812): exit code 3", "It ran for 4.00 s."]
    assert str(manycore.Certificate(0, "", None, note="no such file")).startswith("process (pid 0): no such file\n")


def test_native_stacks_are_shown_in_few_lines() -> None:
    frames = [f'  Binary file "/usr/lib/libc.so.6", at f{number}+0x1 [0x7f00]' for number in range(30)]
    certificate = manycore.Certificate(1, "", -11, native_stack="\n".join(frames))
    assert certificate.native_where.splitlines() == [
        *(f"  f{number}+0x1 in libc.so.6" for number in range(10)),
        "  ...",
    ]
    frames[2] = frames[2].replace("f2", "_PyEval_EvalFrameDefault")
    certificate = manycore.Certificate(1, "", -11, native_stack="\n".join(frames))
    assert certificate.native_where == "  f0+0x1 in libc.so.6\n  f1+0x1 in libc.so.6"


@pytest.mark.parametrize("end", ["return", "killed"])
def test_on_death_is_called_once(end: str, context: Any) -> None:
    seen: list[Any] = []
    called = threading.Event()

    def on_death(process: Any) -> None:
        seen.append((process, process.exitcode, process.certificate.exitcode, threading.current_thread()))
        called.set()

    target, args = (die, (signal.SIGKILL,)) if end == "killed" else (work, (0, 0))
    process = context.Process(target=target, args=args, on_death=on_death)
    process.start()
    process.join(30)  # learns the end at the same time
    assert called.wait(30)
    code = -signal.SIGKILL if end == "killed" else 0
    assert [found[:3] for found in seen] == [(process, code, code)]
    assert seen[0][3] is not threading.current_thread()


def test_on_death_of_one_that_is_closed_at_once(context: Any) -> None:
    called = threading.Event()
    process = context.Process(target=work, args=(0, 0), on_death=lambda _: called.set())
    process.start()
    process.join(30)
    process.close()
    assert called.wait(30)


# What kernels write: cgroup version 2, version 1, and the machine's own count.
RECORDED = {
    "memory.events": "low 0\nhigh 0\nmax 812\noom 3\noom_kill {}\noom_group_kill 0\n",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n",
}


@pytest.mark.parametrize("name", list(RECORDED))
def test_what_the_kernel_counts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_cgroups", lambda: [str(tmp_path / "nothing here"), str(tmp_path)])

    def counted(kills: int) -> None:
        (tmp_path / name).write_text(RECORDED[name].format(kills), encoding="ascii")

    counted(2)
    watch = oom.OomWatch()
    assert watch.has_killed() is False
    counted(4)  # two at once: each of the two dead processes finds its own
    assert [watch.has_killed() for _ in range(3)] == [True, True, False]
    counted(5)
    watch._seen = 4
    assert watch.has_killed() is True


def test_kills_of_others_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_cgroups", lambda: [str(tmp_path)])
    (tmp_path / "memory.events").write_text("oom_kill 0\n", encoding="ascii")
    watch = oom.OomWatch()
    (tmp_path / "memory.events").write_text("oom_kill 3\n", encoding="ascii")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert watch.has_killed() is True
    monkeypatch.setattr(time, "monotonic", lambda: now + 60)
    assert watch.has_killed() is False


def test_a_kernel_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oom, "_count", lambda: None)
    assert oom.OomWatch().has_killed() is None
