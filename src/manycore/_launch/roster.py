"""Which processes of manycore run on this machine, whatever state their programs are in: what /proc says.

A program is known by its zygote or its fork server, which it is the parent of; a process that a program started, by
its title or by the memfd that it holds for its stacks. Nothing is asked of the processes themselves, so a program
that is stuck or stopped is shown as well.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from manycore._launch import stacks

__all__ = ["HELPERS", "Entry", "family", "roster"]

HELPERS = frozenset(("zygote", "spare", "forkserver"))  # the roles of those that run nobody's code

PREFIX = "manycore: "
_FORK_SERVER = "from multiprocessing.forkserver import main"
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STATES = {
    "R": "running",
    "S": "waiting",
    "D": "in the kernel",
    "T": "stopped",
    "t": "traced",
    "Z": "ended",
    "I": "idle",
}


class Entry(NamedTuple):
    """One process.

    Attributes:
        pid: The process.
        parent: The process of this list that it belongs to, or 0 for a program.
        role: "program", "zygote", "spare", "worker", "process", "forkserver" (the standard library's), or "child" where
            it has no title.
        title: Its title, or its command line.
        task: What it says that it runs, or "".
        state: In a word.
        cpu_seconds: Processor time so far.
        rss_bytes: Memory that it holds now, what it shares counted in full.
        age_seconds: Since it was started.
    """

    pid: int
    parent: int
    role: str
    title: str
    task: str
    state: str
    cpu_seconds: float
    rss_bytes: int
    age_seconds: float


class _Stat(NamedTuple):
    parent: int
    state: str
    cpu_seconds: float
    rss_bytes: int
    age_seconds: float
    command: str


def roster() -> list[Entry]:
    """The processes of manycore that this user may look into, programs first, each followed by what it started."""
    with open("/proc/uptime", encoding="ascii") as file:
        uptime = float(file.read().split()[0])
    stats = {int(name): stat for name in os.listdir("/proc") if name.isdigit() and (stat := _stat(int(name), uptime))}
    ours = {pid for pid, stat in stats.items() if stat.command.startswith(PREFIX) or stacks.answers(pid)}
    servers = {stats[pid].parent for pid in ours if _is_fork_server(stats.get(stats[pid].parent))}
    zygotes = {pid for pid in ours if stats[pid].command.startswith(f"{PREFIX}zygote of ")} | servers
    ours |= servers
    programs = {stats[pid].parent for pid in ours} - ours
    below: dict[int, list[int]] = {}
    for pid in sorted(ours | programs):
        parent = stats[pid].parent if pid in stats else 0
        if parent in zygotes:
            parent = stats[parent].parent  # the program's child, not the zygote's
        below.setdefault(parent if parent in ours | programs else 0, []).append(pid)
    entries: list[Entry] = []
    pending = [(pid, 0) for pid in reversed(below.get(0, []))]
    while pending:
        pid, parent = pending.pop()
        if pid in stats and pid > 1:
            entries.append(_entry(pid, parent, stats[pid]))
        pending += [(child, pid) for child in reversed(below.get(pid, []))]
    return entries


def family(pid: int) -> list[Entry]:
    """The entry of `pid` and those below it; empty if it is no process of manycore's."""
    members: set[int] = set()
    found = []
    for entry in roster():
        if entry.pid == pid or entry.parent in members:
            members.add(entry.pid)
            found.append(entry)
    return found


def _entry(pid: int, parent: int, stat: _Stat) -> Entry:
    role, title, task = "program", stat.command, ""
    if stat.command.startswith(PREFIX):
        title = stat.command[len(PREFIX) :]
        role = title.split(" ", 1)[0]
        if title.endswith("]") and " [" in title:
            title, _, task = title[:-1].rpartition(" [")
    elif _is_fork_server(stat):
        role, title = "forkserver", f"fork server of {stat.parent}"
    elif parent:
        role = "child"
    return Entry(pid, parent, role, title, task, stat.state, stat.cpu_seconds, stat.rss_bytes, stat.age_seconds)


def _is_fork_server(stat: _Stat | None) -> bool:
    return stat is not None and _FORK_SERVER in stat.command


def _stat(pid: int, uptime: float) -> _Stat | None:
    try:
        if os.stat(f"/proc/{pid}").st_uid not in {os.getuid(), os.geteuid()} and os.geteuid() != 0:
            return None
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read().rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return None
    if not command:  # of the kernel, or ended
        return None
    # fields of proc(5), counted from one: 3 state, 4 ppid, 14 utime, 15 stime, 22 starttime, 24 rss
    number = [int(fields[index - 3]) for index in (4, 14, 15, 22, 24)]
    state = _STATES.get(fields[0].decode("ascii"), "?")
    ticks = (number[1] + number[2]) / _TICKS
    return _Stat(number[0], state, ticks, number[4] * _PAGE_BYTES, max(0.0, uptime - number[3] / _TICKS), command)
