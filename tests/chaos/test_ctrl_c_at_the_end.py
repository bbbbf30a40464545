"""Ctrl-C at each point of a program's end, where the interpreter swallows it: its children end, and so does it.

A trace function counts the steps of the main thread from the last line of the program on, and sends SIGINT at the n-th.
MANYCORE_CHAOS_WHOLE=1 tries each bytecode; else some lines are chosen at random.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.chaos import cases
from tests.chaos.test_process_signals import begun

WHOLE = os.environ.get("MANYCORE_CHAOS_WHOLE") == "1"

STEPS = """
    import mmap
    with open("{steps}", "r+b") as file:
        steps = mmap.mmap(file.fileno(), 8)
    def count(frame, event, arg):
        frame.f_trace_opcodes = {opcodes}
        steps[:] = (int.from_bytes(steps, "big") + 1).to_bytes(8, "big")
        if int.from_bytes(steps, "big") == {fatal}:
            signal.raise_signal(signal.SIGINT)
        return count
    started()
    print("ready", flush=True)
    sys.settrace(count)
"""


def step(steps: Path) -> int:
    return int.from_bytes(steps.read_bytes(), "big")


def ended(process: subprocess.Popen[str], mark: str) -> str:
    """What a program says that ends by Ctrl-C; a part of it may be the interpreter's."""
    _, err = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT, err
    assert err.count("Traceback (most recent") == 1, err
    assert "KeyboardInterrupt" in err, err
    assert cases.wait_until(lambda: not cases.family(mark), cases.GONE_S), cases.family(mark)
    return err


@pytest.mark.timeout(3000 if WHOLE else 60)
def test_at_each_step(tmp_path: Path, rng: random.Random) -> None:
    steps = tmp_path / "steps"
    steps.write_bytes(bytes(8))
    process, _ = begun(tmp_path, STEPS.format(steps=steps, opcodes=WHOLE, fatal=0), "zygote")
    last, since = 0, time.monotonic()
    while time.monotonic() - since < 0.3:  # until it waits for its child
        if last != step(steps):
            last, since = step(steps), time.monotonic()
    process.kill()
    process.communicate()
    assert last > 100
    for fatal in range(1, last - 10) if WHOLE else rng.sample(range(1, last - 10), 8):
        steps.write_bytes(bytes(8))
        process, mark = begun(tmp_path, STEPS.format(steps=steps, opcodes=WHOLE, fatal=fatal), "zygote")
        try:
            ended(process, mark)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            process.kill()
            raise AssertionError(f"step {fatal} of {last}") from error


BETWEEN = """
    import atexit, ctypes
    {handler}
    started()
    atexit.register(ctypes.CDLL(None).kill, os.getpid(), {signum:d})
    print("ready", flush=True)
"""
OF_THE_PROGRAM = "signal.signal(signal.SIGINT, lambda *why: signal.default_int_handler(*why))"


@pytest.mark.parametrize("handler", ["", OF_THE_PROGRAM], ids=["pythons", "of the program"])
def test_between_two_exit_handlers(handler: str, tmp_path: Path) -> None:
    """Where no Python code is run: the next to run some finds it."""
    ended(*begun(tmp_path, BETWEEN.format(handler=handler, signum=signal.SIGINT), "zygote"))


def test_in_an_exit_handler_that_goes_on(tmp_path: Path) -> None:
    body = """
    import atexit
    started()
    def last_will():
        try:
            print("ready", flush=True)
            time.sleep(100)
        except KeyboardInterrupt:
            print("Traceback (most recent call last): KeyboardInterrupt", file=sys.stderr)
    atexit.register(last_will)
"""
    process, mark = begun(tmp_path, body, "zygote")
    process.send_signal(signal.SIGINT)
    ended(process, mark)


def test_another_ends_the_wait_for_who_is_deaf(tmp_path: Path) -> None:
    """A process of a standard start method has its own SIGINT; the parent's wait ends by one, too."""
    body = """
    def deaf(connection):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        wait(connection)
    globals()["deaf"] = deaf
    started(deaf)
    manycore.get_context("zygote").Process(target=double, args=(1,)).start()
    print("ready", flush=True)
    time.sleep(100)
"""
    process, mark = begun(tmp_path, body, "fork")
    end = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < end:
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    ended(process, mark)


FINISHES = """
    def finish(connection):
        connection.send_bytes(b"here")
        with open("{gate}", "rb", buffering=0) as gate:
            assert gate.read(1) == b"!"
        print("finished", file=sys.stderr)
    globals()["finish"] = finish
    started(finish)
    {end}
    print("ready", flush=True)
"""
FAILS = "threading._register_atexit(sys.exit, 7)"
INTERRUPTED_ONCE = """sys.ps1, sys.last_type = "> ", KeyboardInterrupt"""


@pytest.mark.parametrize("end", [FAILS, INTERRUPTED_ONCE], ids=["a handler fails", "a session went on"])
def test_what_is_no_ctrl_c_ends_no_child(end: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    gate = os.open(tmp_path / "gate", os.O_RDWR)
    process, _ = begun(tmp_path, FINISHES.format(gate=tmp_path / "gate", end=end), "zygote")
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.3)
    os.write(gate, b"!")
    _, err = process.communicate(timeout=20)
    os.close(gate)
    assert (process.returncode, err.endswith("finished\n")) == (0, True), err


def test_sigterm_between_two_exit_handlers_ends_in_order(tmp_path: Path) -> None:
    handler = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))"
    body = BETWEEN.format(handler=handler, signum=signal.SIGTERM).replace("started()", "started(daemon=True)")
    process, mark = begun(tmp_path, body, "zygote")
    _, err = process.communicate(timeout=20)
    assert err.count("Traceback (most recent") == 1, err
    assert cases.wait_until(lambda: not cases.family(mark), cases.GONE_S), cases.family(mark)
