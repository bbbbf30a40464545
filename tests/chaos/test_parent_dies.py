"""The parent is killed with SIGKILL, in every state that its children can be in: nothing is left a second later."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

MARK = "MANYCORE_CHAOS_FAMILY"
GONE_WITHIN_S = 1.0
SURELY_S = 5.0  # for a machine that is busy with other things; then it is tried again

PROGRAM = """
import itertools, multiprocessing, os, signal, subprocess, sys, threading, time
import manycore

def say(text):
    os.write(1, (text + "\\n").encode())

def idle():
    say("ready")
    threading.Event().wait()

def busy():
    say("ready")
    while True:
        sum(range(1000))

def stuck():
    say("ready")
    all(itertools.repeat(True))

def deaf():
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    say("ready")
    threading.Event().wait()

def stopped():
    say("ready")
    os.kill(os.getpid(), signal.SIGSTOP)

def no_descriptors():
    say("ready")
    os.closerange(3, 10000)
    all(itertools.repeat(True))

def with_children():
    if os.fork() == 0:
        say("ready")
        all(itertools.repeat(True))
    subprocess.Popen(["sleep", "1000"])
    say("ready")
    threading.Event().wait()

def with_forks():
    if sys.argv[3] != "daemon":  # which may have no standard processes
        multiprocessing.get_context("fork").Process(target=stuck).start()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            stuck()
        os._exit(0)
    busy()

def with_escaped_child():
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            say("ready")
            threading.Event().wait()
        os._exit(0)
    say("ready")
    threading.Event().wait()

def with_manager():
    manager = manycore.get_context(sys.argv[2]).Manager()
    assert os.path.exists(manager.address)
    say(manager.address)
    threading.Event().wait()

def nested():
    process = manycore.get_context(sys.argv[2]).Process(target=stuck, daemon=sys.argv[3] == "daemon")
    process.start()
    say("ready")
    process.join()

def zygote_of_this():
    from manycore._launch import launcher
    return launcher.current()._zygote.pid

def main(state, method, kind):
    context = manycore.get_context(method)
    if state == "starting":
        say("ready")
        while True:
            context.Process(target=idle, daemon=kind == "daemon").start()
    if state == "with_manager":
        with_manager()
    if state == "preloading":
        manycore.get_context().set_forkserver_preload(["slow_to_import"])
        manycore.Process(target=idle, daemon=True).start()
    if state in ("zygote_killed", "zygote_stopped"):
        context.Process(target=stuck).start()
        os.kill(zygote_of_this(), signal.SIGKILL if state == "zygote_killed" else signal.SIGSTOP)
    else:
        context.Process(target=globals()[state], daemon=kind == "daemon").start()
    threading.Event().wait()

if __name__ == "__main__":
    main(*sys.argv[1:])
"""

READY = {"with_children": 2, "with_forks": 2, "with_escaped_child": 2, "nested": 2}
STATES = [
    "idle",
    "busy",
    "stuck",
    "deaf",
    "stopped",
    "no_descriptors",
    "with_children",
    "with_escaped_child",
    "nested",
    "starting",
    "preloading",
    "zygote_killed",
    "zygote_stopped",
]


def family(mark: str) -> dict[int, str]:
    """Living processes that carry the mark."""
    wanted = f"{MARK}={mark}".encode()
    found = {}
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                state = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
                if state != "Z":
                    command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    found[int(entry)] = f"{state} {command[:80]}"
        except (OSError, ValueError):
            continue
    return found


def shared() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith(("manycore", "mp-", "psm_"))}


@pytest.mark.parametrize("state", STATES)
def test_nothing_is_left(state: str, tmp_path: Path) -> None:
    kill_the_parent(state, "zygote", tmp_path)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("state", ["idle", "busy", "stuck", "deaf", "stopped", "no_descriptors", "nested", "starting"])
def test_daemons_of_the_standard_methods(state: str, method: str, tmp_path: Path) -> None:
    kill_the_parent(state, method, tmp_path)


@pytest.mark.parametrize("method", ["zygote", "fork", "spawn", "forkserver"])
@pytest.mark.parametrize("state", ["idle", "busy", "stuck", "deaf", "stopped", "nested", "starting"])
def test_processes_that_are_no_daemons(state: str, method: str, tmp_path: Path) -> None:
    kill_the_parent(state, method, tmp_path, daemon=False)


@pytest.mark.parametrize("method", ["zygote", "fork", "spawn", "forkserver"])
@pytest.mark.parametrize("daemon", [True, False])
def test_what_they_forked(method: str, daemon: bool, tmp_path: Path) -> None:
    kill_the_parent("with_forks", method, tmp_path, daemon=daemon)


@pytest.mark.parametrize("method", ["zygote", "fork", "spawn", "forkserver"])
def test_no_socket_file_of_a_manager_is_left(method: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    parent = subprocess.Popen([sys.executable, str(program), "with_manager", method, ""], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    address = parent.stdout.readline().strip()
    parent.kill()
    parent.communicate()
    wait_for(lambda: not os.path.exists(address), SURELY_S)


def kill_the_parent(state: str, method: str, tmp_path: Path, daemon: bool = True) -> None:
    took = [seconds_until_gone(state, method, tmp_path, daemon)]
    while took[-1] > GONE_WITHIN_S:
        assert len(took) < 3, took
        took.append(seconds_until_gone(state, method, tmp_path, daemon))


def seconds_until_gone(state: str, method: str, tmp_path: Path, daemon: bool) -> float:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    (tmp_path / "slow_to_import.py").write_text("import os, time\nos.write(2, b'')\ntime.sleep(60)\n", encoding="utf-8")
    mark = uuid.uuid4().hex
    before = shared()
    parent = subprocess.Popen(
        [sys.executable, str(program), state, method, "daemon" if daemon else "none"],
        stdout=subprocess.PIPE,
        env={**os.environ, MARK: mark},
        start_new_session=True,
    )
    assert parent.stdout is not None
    try:
        if state == "preloading":
            wait_for(lambda: any("zygote" in text for text in family(mark).values()))
        elif state not in {"zygote_killed", "zygote_stopped"}:
            for _ in range(READY.get(state, 1) + (state == "with_forks" and not daemon)):
                assert parent.stdout.readline() == b"ready\n"
        else:
            assert parent.stdout.readline() == b"ready\n"
            wait_for(lambda: zygote_is_down(mark, state))
        if state == "stopped":
            wait_for(lambda: any(text.startswith("T") for text in family(mark).values()))
        parent.kill()
        killed = time.monotonic()
        parent.wait()
        while (left := family(mark)) and time.monotonic() < killed + SURELY_S:
            select.poll().poll(10)
        took = time.monotonic() - killed
        assert left == {}
        assert shared() <= before
        return took
    finally:
        parent.stdout.close()
        if parent.poll() is None:
            parent.kill()
            parent.wait()
        for pid in family(mark):
            os.kill(pid, signal.SIGKILL)


def zygote_is_down(mark: str, state: str) -> bool:
    zygotes = [text for text in family(mark).values() if "zygote of" in text]
    return not zygotes if state == "zygote_killed" else any(text.startswith("T") for text in zygotes)


def wait_for(condition: object, within: float = 20.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        select.poll().poll(5)
