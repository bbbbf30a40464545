"""One measurement in a fresh process that cannot outlive its bound, nor leave anything behind.

The command gets a session of its own and a marker in its environment. When it ends, or at the bound,
every process that carries the marker or belongs to the session is ended, and nothing else: a process
is looked up again through a pidfd before it is killed, so that a recycled id is never mistaken.

    command exits      -> its own processes get `GRACE` to follow -> SIGKILL to what remains
    bound reached      -> SIGKILL to all
    result was written -> the command gets `EXIT_BOUND` to close its pool and exit
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

MARKER = "MANYCORE_BENCHMARK_CAGE"
GRACE = 1.0  # seconds that helpers of a peer (resource trackers, servers) have to notice its end
EXIT_BOUND = 10.0  # seconds from a written result to the end of the process
OUTPUT_TAIL = 4000  # characters of the output that are kept


class Ended(NamedTuple):
    """How a caged command ended.

    Attributes:
        returncode: As subprocess has it; None if it was killed at its bound.
        seconds: How long it ran.
        killed: How many processes had to be killed.
        output: The tail of its standard output and error.
    """

    returncode: int | None
    seconds: float
    killed: int
    output: str


def run_caged(command: Sequence[str], *, timeout: float, result: str | None = None, cwd: str | None = None) -> Ended:
    """Runs a command within a bound, and ends all that it started.

    Args:
        command: Program and arguments.
        timeout: Seconds until it is killed.
        result: A file whose appearance means that the measurement is done and only the exit remains.
        cwd: Working directory.

    Returns:
        How it ended.
    """
    marker = secrets.token_hex(8)
    environ = {**os.environ, MARKER: marker, "PYTHONUNBUFFERED": "1"}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else a library is compiled anew in each process that imports it
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environ,
            cwd=cwd,
            start_new_session=True,
        )
        try:
            in_time = _wait(process.pid, started + timeout, result)
        except BaseException:  # Ctrl-C reaches this process alone
            _end_all(process.pid, marker, 0.0, spare_helpers=False)
            process.wait()
            raise
        seconds = time.monotonic() - started
        deadline = time.monotonic() + (GRACE if in_time else 0.0)
        killed = _end_all(process.pid, marker, deadline, spare_helpers=in_time)
        returncode = process.wait()
        output.seek(0)
        text = output.read().decode(errors="replace")[-OUTPUT_TAIL:]
    return Ended(returncode if in_time else None, seconds, killed, text)


def _wait(pid: int, deadline: float, result: str | None) -> bool:
    """Waits for the end of `pid`, which is a child of ours and not reaped yet; False at the bound."""
    pidfd = os.pidfd_open(pid)
    try:
        done_at: float | None = None
        while True:
            now = time.monotonic()
            if result is not None and done_at is None and os.path.exists(result):
                done_at = now
            bound = deadline if done_at is None else max(deadline, done_at + EXIT_BOUND)
            if now >= bound:
                return False
            if select.select([pidfd], [], [], min(bound - now, 0.25))[0]:
                return True
    finally:
        os.close(pidfd)


def _end_all(session: int, marker: str, deadline: float, *, spare_helpers: bool) -> int:
    """Waits until `deadline` for the cage to empty, then kills what is left; returns how many."""
    while remaining := members(session, marker):
        if time.monotonic() >= deadline:
            break
        time.sleep(0.02)
    killed = 0
    for sparing in (True, False) if spare_helpers else (False,):
        # a resource tracker that outlives its users removes what they left; so it goes last
        limit = time.monotonic() + 2.0
        while remaining := [pid for pid in members(session, marker) if not (sparing and _is_tracker(pid))]:
            killed += sum(_kill(pid, session, marker) for pid in remaining)
            if time.monotonic() > limit:
                break
            time.sleep(0.01)
        if sparing and members(session, marker):
            time.sleep(0.3)
    return killed


def members(session: int, marker: str) -> list[int]:
    """Returns the ids of the living processes of a cage."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _belongs(int(name), session, marker)]


def _belongs(pid: int, session: int, marker: str) -> bool:
    if pid == os.getpid():
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
        if fields[0] in b"ZX":
            return False
        if int(fields[3]) == session:
            return True
        with open(f"/proc/{pid}/environ", "rb") as environ:
            return f"{MARKER}={marker}".encode() in environ.read().split(b"\0")
    except (OSError, IndexError):
        return False


def _is_tracker(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as cmdline:
        return b"resource_tracker" in cmdline.read()
    return False


def _kill(pid: int, session: int, marker: str) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _belongs(pid, session, marker):
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True
