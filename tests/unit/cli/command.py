"""Runs the installed command, as a shell would."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

EXECUTABLE = Path(sys.executable).with_name("manycore")
MARK = "MANYCORE_TEST_COMMAND"  # in the environment of a command and of all that it starts
GONE_WITHIN_S = 1.0  # after the command has ended


@dataclass
class Command:
    """A running command, in a process group of its own, as a shell gives it.

    Attributes:
        process: The command itself.
        mark: What its processes carry.
    """

    process: subprocess.Popen[bytes]
    mark: str = field(repr=False)

    def interrupt(self) -> None:
        """Ctrl-C: the terminal sends SIGINT to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def others(self) -> list[int]:
        """Living processes that it started, directly or not."""
        mark = f"{MARK}={self.mark}".encode()
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == self.process.pid:
                continue
            try:
                state = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and mark in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
            except OSError:
                continue
        return found

    def nothing_left(self) -> bool:
        """Whether all of them are gone, or go at once."""
        deadline = time.monotonic() + GONE_WITHIN_S
        while self.others() and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self.others()


@contextmanager
def started(
    *args: str | Path,
    stdin: int | IO[Any] | None = subprocess.DEVNULL,
    stdout: int | IO[Any] | None = subprocess.PIPE,
    stderr: int | IO[Any] | None = subprocess.PIPE,
    env: dict[str, str] | None = None,
) -> Iterator[Command]:
    """Start `manycore ARGS`; end it, whatever happens."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [str(EXECUTABLE), *map(str, args)],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **(env or {}), MARK: mark},
        process_group=0,
    )
    command = Command(process, mark)
    try:
        yield command
    finally:
        if process.poll() is None:
            process.kill()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        process.wait()


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What it said on standard error, by lines."""
        return self.err.splitlines()


def run(*args: str | Path, input: str = "", timeout: float = 30.0, env: dict[str, str] | None = None) -> Ended:
    """Run `manycore ARGS` to its end; it leaves no process."""
    with started(*args, stdin=subprocess.PIPE, env=env) as command:
        out, err = command.process.communicate(input.encode(errors="surrogateescape"), timeout)
        assert command.nothing_left()
    return Ended(command.process.returncode, out.decode(), err.decode())


def shell(line: str, *, timeout: float = 30.0, cwd: Path | None = None) -> Ended:
    """Run a line of bash in which `manycore` is the installed command; the statuses of a pipe are its last line."""
    environ = {**os.environ, "PATH": f"{EXECUTABLE.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", f'{line}\necho "${{PIPESTATUS[*]}}"'],
        capture_output=True,
        timeout=timeout,
        check=False,
        env=environ,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
    )
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())
