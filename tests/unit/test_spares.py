"""Spares: children forked in advance, which the parent asks itself; and what is lost of a request when they die."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from manycore._launch import Certificate, Child, launch, launcher, preload, shutdown

HERE = "tests.unit.launch_targets:"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def zygote() -> int:
    found = launcher.current()._zygote
    assert found is not None
    return found.pid


def spares() -> list[int]:
    """Those that have said that they are spares, and may be in the midst of a request."""
    with open(f"/proc/{zygote()}/task/{zygote()}/children", encoding="ascii") as file:
        pids = [int(pid) for pid in file.read().split()]
    return [pid for pid in pids if title(pid).startswith(b"manycore: spare")]


def title(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def ended(child: Child) -> Certificate:
    status = child.wait(30)
    assert status is not None
    return status


def with_spares(linger: bool = True) -> list[int]:
    """Two spares that wait for a request, or one where processes may not linger."""
    for _ in range(100):
        ended(launch(HERE + "exit_with", b"0", linger=linger))
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            found = spares()
            if len(found) == 1 + linger and all(is_asleep(pid) for pid in found):
                return found
            select.poll().poll(2)
    raise AssertionError(found)


def is_asleep(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"S"
    except OSError:
        return False


def gone(pid: int) -> None:
    """Wait until a process of somebody else's is no more."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    assert poller.poll(30_000)
    os.close(pidfd)


def stop(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        while is_asleep(pid):
            select.poll().poll(1)


def read(fd: int) -> bytes:
    """All that is in a pipe now."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return os.read(fd, 1000) if poller.poll(0) else b""


@pytest.mark.parametrize("linger", [False, True])
def test_one_is_asked_though_the_zygote_does_nothing(linger: bool, pipe: tuple[int, int]) -> None:
    for _ in range(20):  # they are kept for two seconds, which can be over
        found = with_spares(linger)
        os.kill(zygote(), signal.SIGSTOP)
        try:
            child = launch(HERE + "write", b"x", [pipe[1]], linger=linger)
            started = child.wait_started(0.4)
        finally:
            os.kill(zygote(), signal.SIGCONT)
        assert ended(child).exitcode == 0
        assert read(pipe[0]) == b"x"
        if started and child.pid in found:
            return
    raise AssertionError


def test_what_has_changed_is_known_to_the_next(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    with_spares()
    monkeypatch.setenv("MANYCORE_TEST_VARIABLE", "now")
    ended(launch(HERE + "tell_variable", b"MANYCORE_TEST_VARIABLE", [pipe[1]]))
    assert read(pipe[0]) == b"now"
    with_spares()
    ended(launch(HERE + "tell_variable", b"MANYCORE_TEST_VARIABLE", [pipe[1]]))
    assert read(pipe[0]) == b"now"
    preload("colorsys")
    ended(launch(HERE + "import_and_tell", b"colorsys", [pipe[1]]))
    assert read(pipe[0]) == b"colorsys"


def test_idle_ones_that_are_killed_are_not_missed(pipe: tuple[int, int]) -> None:
    for pid in with_spares():
        os.kill(pid, signal.SIGKILL)
    assert ended(launch(HERE + "write", b"x", [pipe[1]])).exitcode == 0
    assert read(pipe[0]) == b"x"


def test_what_a_killed_one_was_asked_for_is_done_by_another(pipe: tuple[int, int]) -> None:
    found = with_spares()
    stop(found)
    child = launch(HERE + "write", b"x", [pipe[1]], linger=True)
    assert not child.wait_started(0.05)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    assert ended(child).exitcode == 0
    assert child.pid not in found
    assert read(pipe[0]) == b"x"


def test_what_one_was_asked_for_runs_once_though_the_zygote_dies(pipe: tuple[int, int]) -> None:
    found = with_spares()
    stop(found)
    child = launch(HERE + "write", b"x", [pipe[1]], linger=True)
    assert not child.wait_started(0.05)
    os.kill(zygote(), signal.SIGKILL)
    try:
        assert ended(child).exitcode == 0
        assert child.pid not in found
    finally:
        for pid in found:
            os.kill(pid, signal.SIGCONT)
    for pid in found:
        gone(pid)
    assert read(pipe[0]) == b"x"


@pytest.mark.parametrize("count", [1, 30, 200])
def test_any_number_of_descriptors_goes_with_a_request(count: int, pipe: tuple[int, int]) -> None:
    for _ in range(3):  # from the zygote, and from spares
        assert ended(launch(HERE + "write", b"x", [pipe[1]] * count)).exitcode == 0
        assert read(pipe[0]) == b"x"


def test_nothing_runs_twice_or_is_lost_whoever_is_killed() -> None:
    """Spares and zygotes at any moment of a start."""
    seconds = float(os.environ.get("MANYCORE_CHAOS_SECONDS", "1.5"))
    over = threading.Event()

    def kill() -> None:
        while not over.wait(random.uniform(0.0, 0.02)):
            try:
                pids = spares() if random.random() < 0.9 else [zygote()]
                os.kill(random.choice(pids), signal.SIGKILL)
            except (AssertionError, IndexError, OSError):
                pass

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            read_end, write_end = os.pipe()
            child = launch(HERE + "write", b"x", [write_end], linger=True)
            status = ended(child)
            os.close(write_end)
            seen = os.read(read_end, 10)  # to its end
            os.close(read_end)
            assert seen in {b"", b"x"}
            assert seen == b"x" or status.exitcode in {-signal.SIGKILL, None}  # killed as it took the request
    finally:
        over.set()
        killer.join()


GATE = """
import os, select

def wait():
    while os.path.exists(__file__ + ".shut"):
        select.poll().poll(1)

os.register_at_fork(after_in_child=wait)
"""

UNREADY = """
import os, select, sys, time
from pathlib import Path

sys.path.insert(0, sys.argv[1])
shut = Path(sys.argv[1], "gate.py.shut")
from manycore._launch import launch, launcher, preload

def announced(but):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        zygote = launcher.current()._zygote
        for slot in zygote._slots:
            if slot.look() == zygote.told and slot.pid != but:
                return slot.pid
        select.poll().poll(1)
    raise AssertionError("no spare")

preload("gate")
for _ in range(10):  # a spare may be told to end meanwhile, for the zygote has learned something
    launch("operator:is_", b"").wait(20)
    first = announced(0)
    shut.touch()
    child = launch("operator:is_", b"")
    if child.wait_started(2) and child.pid == first:  # it was forked before the gate was shut, and the next is not
        spare = announced(first)
        child = launch("operator:is_", b"")
        assert not child.wait_started(0.1)
    else:
        spare = 0
    shut.unlink()
    if child.pid == spare:
        break
print(child.pid == spare)
"""


def test_one_is_asked_while_it_gets_ready(tmp_path: Path) -> None:
    (tmp_path / "gate.py").write_text(GATE)
    command = [sys.executable, "-c", UNREADY, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n"


# -- what runs in a zygote beside its loop ---------------------------------------------------------------------------


@pytest.fixture
def preloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the path, for a zygote that ends with the test."""
    shutdown()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    shutdown()


def test_a_default_timeout_of_a_preloaded_module_does_not_end_spares(preloaded: Path) -> None:
    (preloaded / "spares_hurry.py").write_text("import socket\nsocket.setdefaulttimeout(0.001)\n", encoding="utf-8")
    preload("spares_hurry")
    with_spares()


def test_a_signals_handler_of_a_preloaded_module_is_called_while_the_zygote_waits(preloaded: Path) -> None:
    text = "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *_: os._exit(5))\n"
    (preloaded / "spares_handler.py").write_text(text, encoding="utf-8")
    preload("spares_handler")
    with_spares()
    pid = zygote()
    os.kill(pid, signal.SIGUSR1)
    gone(pid)
    assert ended(launch(HERE + "exit_with", b"3")).exitcode == 3


def test_a_thread_that_ends_by_itself_does_so_while_the_zygote_waits(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        """
import sys, threading
def rest():
    for _ in range(50):
        threading.Event().wait(0.001)
if any("manycore._launch.zygote" in argument for argument in sys.orig_argv):
    threading.Thread(target=rest, daemon=True).start()
""",
        encoding="utf-8",
    )
    program = """
import time
from manycore._launch import launch
deadline = time.monotonic() + 20
while (child := launch("operator:eq", b"", [])).wait(20).note and time.monotonic() < deadline:
    pass
print(child.status.note)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert done.stdout.strip() == "", done.stderr
