"""Runs one case of a chaos script in a session of its own, and says how it ended and what it left.

A script (`*_script.py`) is a table of functions; `python SCRIPT CASE FACE SEED` runs one, and it succeeds when the
process ends by itself, in time, with exit status 0 and without a word on standard error. A case that hangs is told
apart: the stacks of all its threads and where its processes sleep are printed before all of them are ended.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

MARK = "MANYCORE_CHAOS_FAMILY"
LIMIT_S = 30.0  # for a case that takes a second on an idle machine
GONE_S = 5.0  # for the zygote and the workers, after their parent's end
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Ended:
    """How a case ended."""

    status: int
    out: str
    err: str
    seconds: float


def names(script: str) -> list[str]:
    """The cases of a script, in its order: the functions that `@case` marks."""
    text = (HERE / script).read_text(encoding="utf-8")
    return re.findall(r"^@case\b[^\n]*\ndef (\w+)", text, re.MULTILINE)


# Under the standard start methods in every run; the others there with MANYCORE_EVERY_START_METHOD=1 (ten minutes).
EVERYTHING = bool(os.environ.get("MANYCORE_EVERY_START_METHOD"))
CORE = {
    "all_idle_workers", "busy_worker_fails_alone", "crashes", "in_the_middle_of_a_big_result", "stopped_and_killed",
    "stuck_in_c", "descriptors_closed", "initializer_that_raises", "initializer_that_hangs_beyond_its_timeout",
    "starts_fail_while_one_works", "argument_cannot_be_rebuilt", "exit_busy",
    "holds_the_interpreter", "a_replacement_dies_while_it_starts", "stopped_in_the_middle_of_a_big_result",
    "storm_of_signals", "grandchild_that_holds_every_descriptor", "nested_pool", "initializer_that_exits",
    "runs_tasks_that_have_children",
}  # fmt: skip

# Cases that are not for some start methods, and why.
_TOO_SLOW = "a start takes longer than the time between two kills, and the pool is right to give up"
NOT_UNDER = {
    "replacements_die_while_they_start": ({"fork", "spawn", "forkserver"}, _TOO_SLOW),
}


def everywhere(cases: Iterable[str], slow: Sequence[str] = ()) -> pytest.MarkDecorator:
    """(case, face, method): each case for both faces, from the zygote and by the standard start methods."""
    found = []
    for name in cases:
        for method in ("zygote", "fork", "spawn", "forkserver"):
            if name in NOT_UNDER and method in NOT_UNDER[name][0]:
                continue
            for face in ("pool", "executor"):
                core = name in CORE and (face == "pool") == (method != "spawn")
                if method == "zygote" or core or EVERYTHING:
                    marks = [pytest.mark.slow] if name in slow else []
                    found.append(pytest.param(name, face, method, marks=marks, id=f"{name}-{face}-{method}"))
    return pytest.mark.parametrize(("case", "face", "method"), found)


def family(mark: str) -> dict[int, str]:
    """Living processes that carry the mark, whatever group or session they are in."""
    wanted = f"{MARK}={mark}".encode()
    found = {}
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                state = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
                if state not in "ZX":
                    command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    where = Path(f"/proc/{entry}/wchan").read_text(encoding="utf-8")
                    found[int(entry)] = f"{state} in {where}: {command[-100:]}"
        except (OSError, ValueError):
            continue
    return found


def wait_until(condition: Callable[[], bool], within: float) -> bool:
    """Look every few milliseconds until it holds; False after `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        select.poll().poll(5)
    return True


def run(
    script: str,
    *arguments: str,
    limit: float = LIMIT_S,
    meanwhile: Callable[[subprocess.Popen[str]], None] | None = None,
    expected: int | None = 0,
    folder: Path | None = None,
) -> Ended:
    """Run a case and check that it leaves nothing.

    Args:
        script: The script's file name.
        arguments: The case and what it takes.
        limit: Seconds after which it counts as hung.
        meanwhile: Called once it has said "ready" on standard output.
        expected: The exit status that it must have, with nothing on standard error; None = the caller looks.
        folder: Its working directory.
    """
    mark = uuid.uuid4().hex
    before = _shared()
    started = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", str(HERE / script), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, MARK: mark},
        start_new_session=True,
        cwd=folder,
    )
    try:
        if meanwhile is not None:
            assert child.stdout is not None
            line = child.stdout.readline()
            assert line == "ready\n", line + child.communicate()[1]
            meanwhile(child)
        try:
            out, err = child.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(_hang(child, mark, limit)) from None
        seconds = time.monotonic() - started
        if expected is not None:
            assert child.returncode == expected, f"exit status {child.returncode}\n{out}{err}"
            assert not err, err
        wait_until(lambda: not family(mark), GONE_S)
        assert family(mark) == {}
        assert wait_until(lambda: _shared() <= before, GONE_S), _shared() - before
        return Ended(child.returncode, out, err, seconds)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        for pid in family(mark):
            _signal(pid, signal.SIGKILL)
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()


def _hang(child: subprocess.Popen[str], mark: str, limit: float) -> str:
    processes = "\n".join(f"  {pid} {text}" for pid, text in family(mark).items())
    _signal(child.pid, signal.SIGUSR1)  # the script has registered faulthandler for it
    try:
        out, err = child.communicate(timeout=1.0)
    except subprocess.TimeoutExpired:
        for pid in family(mark):
            _signal(pid, signal.SIGKILL)
        out, err = child.communicate()
    return f"HANG: not done after {limit:g} s\n{processes}\n{out}\n{err}"


def _signal(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass


def _shared() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("manycore")}  # others test beside us
