"""How a process ended: what is known for certain, and None where nothing is."""

from __future__ import annotations

import os
import signal
from typing import NamedTuple

__all__ = ["Certificate", "ExitStatus"]

_LOOP = "_PyEval_EvalFrameDefault"
_MOST_FRAMES = 10  # of native stacks, where they are shown
_PACKAGE = f'  File "{os.path.dirname(os.path.dirname(__file__))}{os.sep}'


class Certificate(NamedTuple):
    """How a process ended.

    Attributes:
        pid: The process, or 0 where it never started.
        title: Its title.
        exitcode: As `multiprocessing` has it: what it exited with, or minus the signal that ended it.
            None where nobody could learn it (it never started, or its zygote was killed on a kernel older
            than 6.15).
        user_seconds: Processor time in user mode, its own ended children included; 0 where nobody could learn it.
        system_seconds: Processor time in the kernel, its own ended children included; the same.
        peak_rss_bytes: The most memory that it held at one time; 0 where nobody could learn it.
        wall_seconds: From its fork to its end.
        oom: Whether the kernel's out-of-memory killer ended it; None where the kernel does not say.
        stack: Its Python stacks when a fatal signal ended it (`faulthandler`'s report), or None.
        native_stack: The native stack of the thread that got that signal, innermost frame first, or None.
        note: What else is to be said, such as why it never started.
    """

    pid: int
    title: str
    exitcode: int | None
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    peak_rss_bytes: int = 0
    wall_seconds: float = 0.0
    oom: bool | None = None
    stack: str | None = None
    native_stack: str | None = None
    note: str = ""

    @property
    def signal_name(self) -> str | None:
        """The name of the signal that ended it, such as "SIGKILL", or None."""
        if self.exitcode is None or self.exitcode >= 0:
            return None
        try:
            return signal.Signals(-self.exitcode).name
        except ValueError:
            return f"signal {-self.exitcode}"

    @property
    def where(self) -> str:
        """Where a fatal signal ended it: its lines of `stack` down to the first of this package's own; or nothing."""
        _, _, report = (self.stack or "").partition("\nCurrent thread ")
        frames: list[str] = []
        for line in report.splitlines()[1:]:
            if not line.startswith("  File ") or (frames and line.startswith(_PACKAGE)):
                break
            frames.append(line)
        return "\n".join(frames)

    @property
    def native_where(self) -> str:
        """The same of `native_stack`: down to the interpreter's own loop, ten frames at most."""
        frames: list[str] = []
        for line in (self.native_stack or "").splitlines():
            file, _, rest = line.strip().removeprefix('Binary file "').partition('"')
            place, _, address = rest.removeprefix(", at ").rstrip("]").partition(" [")
            if place.startswith(_LOOP):
                break
            if len(frames) == _MOST_FRAMES:
                frames.append("  ...")
                break
            frames.append(f"  {place} in {os.path.basename(file)}" if place else f"  {address}")
        return "\n".join(frames)

    def describe(self) -> str:
        """Say in a few words how it ended: "SIGKILL (out of memory)", "exit code 3"."""
        if self.exitcode is None:
            return self.note or "exit code unknown"
        if self.exitcode >= 0:
            return f"exit code {self.exitcode}"
        return f"{self.signal_name}{' (out of memory)' if self.oom else ''}"

    def __str__(self) -> str:
        """All that is known, in lines for people."""
        used = ""
        if self.peak_rss_bytes:  # which no process is without
            time = f"{self.user_seconds + self.system_seconds:.2f} s of processor time"
            used = f", with {time} and {self.peak_rss_bytes / 1e6:.1f} MB at the most"
        lines = [
            f"{self.title or 'process'} (pid {self.pid}): {self.describe()}",
            f"It ran for {self.wall_seconds:.2f} s{used}.",
        ]
        if self.note and self.exitcode is not None:
            lines.append(self.note)
        for where, frames in (("It died here", self.where), ("In native code", self.native_where)):
            if frames:
                lines += [f"{where} (most recent call first):", frames]
        return "\n".join(lines)


ExitStatus = Certificate
