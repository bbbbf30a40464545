"""Who holds what, and who waits for whom: read from shared memory and /proc, never written.

A lock's cell names its owner (process, thread, since when) and those who have waited for it for more than
a few milliseconds. So whoever can map the cell can tell, even of programs that hang; nothing is asked of
the processes themselves.

    /proc/PID/fd/* -> memfd:manycore:cell*   one mapping an inode, read only
    each 64 bytes  -> a header's magic       a lock, a semaphore, an event, or something else

A cycle of threads, each of which waits for a lock that the next one holds, can never end: `deadlocks`.
Layouts are those of `_native/c`: lock.h, semaphore.h, event.h, owner.h.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from manycore._memory.modules import loaded

__all__ = ["Held", "Owner", "Waiter", "deadlocks", "describe", "lock_table", "process_name", "report", "thread_name"]


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        pid: The process.
        process: Its name: that of `Process.name` for this process, of the kernel for another.
        thread: The thread's number in the system (`threading.Thread.native_id`).
        thread_name: Its name: that of `Thread.name` in this process, of the kernel in another.
        since: When it took the lock, in seconds of `time.monotonic`, to some milliseconds.
        alive: False when the process is dead, and nobody has taken the lock over yet.
    """

    pid: int
    process: str
    thread: int
    thread_name: str
    since: float
    alive: bool

    @property
    def held_for(self) -> float:
        """Seconds since it took the lock."""
        return max(0.0, time.monotonic() - self.since)

    def __str__(self) -> str:
        state = "" if self.alive else ", dead"
        return f"{self.process} (pid {self.pid}, thread {self.thread} {self.thread_name}{state})"


def _comm(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return "?"


def process_name(pid: int) -> str:
    """The name of a process: its own one's as Python knows it, another's as its title says, or the kernel."""
    if pid == os.getpid():
        module = loaded("multiprocessing.process")
        return str(module.current_process().name) if module is not None else "MainProcess"
    title = _comm(f"/proc/{pid}/cmdline").partition("\0")[0]
    return title.removeprefix(_TITLE) if title.startswith(_TITLE) else _comm(f"/proc/{pid}/comm")


def thread_name(pid: int, tid: int) -> str:
    """The name of a thread, likewise."""
    if pid == os.getpid():
        for thread in threading.enumerate():
            if thread.native_id == tid:
                return thread.name
    if tid == pid:  # its name is the process's
        return "MainThread"
    return _comm(f"/proc/{pid}/task/{tid}/comm")


def describe(pid: int, tid: int, since_ns: int, *, dead: bool) -> Owner:
    """An `Owner` of what a lock's cell says."""
    return Owner(pid, process_name(pid), tid, thread_name(pid, tid), since_ns / 1e9, not dead)


# ---- everybody's locks ----

_TITLE = "manycore: "  # how the titles of this package's processes begin
_LINE = 64  # bytes; cells are multiples of it
_VERSION = 1  # MC_LAYOUT_VERSION
_LOCK, _SEMAPHORE, _EVENT = 0x4B434F4C, 0x41414D53, 0x544E5645  # the magic numbers of lock.h, semaphore.h, event.h
_LOCK_KINDS = {0: "lock", 1: "rlock", 2: "write lock"}
_PID = (1 << 22) - 1  # the bits of an owner word that hold the pid
_NAME_AT = 40  # bytes; up to the waiters: what a lock is called
_WAITERS_AT, _WAITERS = 64, 8  # bytes; where the records of waiters are, and how many
_TOKENS_AT = 192  # bytes; where a semaphore's permits are
_NAME = "/memfd:manycore:cell"


@dataclass(frozen=True)
class Waiter:
    """A thread that has waited for more than a few milliseconds.

    Attributes:
        pid: Its process.
        process: The process's name.
        thread: Its number in the system.
        thread_name: Its name.
        seconds: How long it has waited.
        since_ms: When that was noted, of the monotonic clock, modulo 2^32.
    """

    pid: int
    process: str
    thread: int
    thread_name: str
    seconds: float
    since_ms: int = 0

    def __str__(self) -> str:
        return f"{self.process} (pid {self.pid}, thread {self.thread} {self.thread_name})"


@dataclass(frozen=True)
class Held:
    """A lock, semaphore or event that somebody holds or waits for.

    Attributes:
        place: Inode of its memory and offset in it: the same in every process.
        kind: "lock", "rlock", "write lock", "semaphore" or "event".
        owners: Who holds it; of a semaphore the processes that hold permits, without thread and time.
        waiters: Who waits for it: the first eight that have waited for some milliseconds.
        name: What its maker called it, or "".
    """

    place: tuple[int, int]
    kind: str
    owners: list[Owner] = field(default_factory=list)
    waiters: list[Waiter] = field(default_factory=list)
    name: str = ""

    def __str__(self) -> str:
        place = f"{self.place[0]}:{self.place[1]}"
        return f"{self.kind} {self.name!r} ({place})" if self.name else f"{self.kind} {place}"


def _map(path: str, status: os.stat_result) -> mmap.mmap | None:
    """The memory of this status; None when the descriptor is another's meanwhile."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not os.path.samestat(os.fstat(fd), status):
            return None
        return mmap.mmap(fd, status.st_size, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(fd)


def _cells(pids: Iterable[int] | None = None) -> Iterator[tuple[int, mmap.mmap]]:
    """(inode, mapping) of every segment of cells that these processes have; None is all of this user.

    A process that looks as well, at this moment, has its segments under two numbers, one of them soon closed. So
    only what was mapped counts as seen.
    """
    seen: set[tuple[int, int]] = set()
    for entry in os.listdir("/proc") if pids is None else map(str, pids):
        if not entry.isdigit():
            continue
        try:
            numbers = os.listdir(f"/proc/{entry}/fd")
        except OSError:  # gone, or another user's
            continue
        for number in numbers:
            path = f"/proc/{entry}/fd/{number}"
            try:
                if not os.readlink(path).startswith(_NAME):
                    continue
                status = os.stat(path)
                if (status.st_dev, status.st_ino) in seen:
                    continue
                memory = _map(path, status)
            except (OSError, ValueError):
                continue
            if memory is not None:
                seen.add((status.st_dev, status.st_ino))
                yield status.st_ino, memory


def _start_ticks(pid: int) -> int | None:
    """When a process started, as an owner word says it; None when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rsplit(b")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in {b"Z", b"X"} and int(fields[17]) <= 1 else int(fields[19]) & 0xFFFFFFFF


def _is_alive(word: int) -> bool:
    ticks = _start_ticks(word & _PID)
    return ticks is not None and word >> 32 in {0, ticks}


def _read_waiters(cell: bytes) -> list[Waiter]:
    found = []
    now_ms = time.monotonic_ns() // 1_000_000
    for index in range(_WAITERS):
        word, tid, since_ms = struct.unpack_from("<QII", cell, _WAITERS_AT + 16 * index)
        pid = word & _PID
        if pid and tid and _is_alive(word) and os.path.exists(f"/proc/{pid}/task/{tid}"):
            seconds = ((now_ms - since_ms) & 0xFFFFFFFF) / 1000
            found.append(Waiter(pid, process_name(pid), tid, thread_name(pid, tid), seconds, since_ms))
    return found


def _read(magic: int, inode: int, memory: mmap.mmap, offset: int) -> Held | None:
    cell = memory[offset : offset + _TOKENS_AT]
    if magic == _LOCK:
        word, tid, _, since_ns, kind = struct.unpack_from("<QIIqI", cell, 8)
        name = cell[_NAME_AT:_WAITERS_AT].rstrip(b"\0").decode(errors="replace")
        held = Held((inode, offset), _LOCK_KINDS.get(kind, "lock"), name=name)
        if word & _PID:
            held.owners.append(describe(word & _PID, tid, since_ns, dead=not _is_alive(word)))
    elif magic == _SEMAPHORE:
        held = Held((inode, offset), "semaphore")
        tokens = min(struct.unpack_from("<I", cell, 12)[0], (len(memory) - offset - _TOKENS_AT) // 8)
        words = struct.unpack_from(f"<{tokens}Q", memory, offset + _TOKENS_AT)
        for word in sorted({word for word in words if word & _PID}):
            pid = word & _PID
            held.owners.append(Owner(pid, process_name(pid), 0, "any", 0.0, _is_alive(word)))
    else:
        held = Held((inode, offset), "event")
    held.waiters.extend(_read_waiters(cell))
    return held if held.waiters or (held.owners and magic == _LOCK) else None


def lock_table(pids: Iterable[int] | None = None) -> list[Held]:
    """Every lock that is held, and all that is waited for.

    Args:
        pids: The processes that have what is asked for; None is every process of this user.
    """
    found = []
    for inode, memory in _cells(pids):
        with memory:
            for offset in range(0, len(memory) - _TOKENS_AT + 1, _LINE):
                magic, version = struct.unpack_from("<II", memory, offset)
                if version == _VERSION and magic in {_LOCK, _SEMAPHORE, _EVENT}:
                    held = _read(magic, inode, memory, offset)
                    if held is not None:
                        found.append(held)
    return found


def deadlocks(table: list[Held]) -> list[list[tuple[Waiter, Held]]]:
    """The cycles among those who wait: each waits for a lock that the next one holds, so none can go on."""
    waits: dict[tuple[int, int], tuple[Waiter, Held]] = {}
    for held in table:
        if held.kind != "semaphore" and held.owners:
            for waiter in held.waiters:
                waits[waiter.pid, waiter.thread] = (waiter, held)
    cycles: list[list[tuple[Waiter, Held]]] = []
    done: set[tuple[int, int]] = set()
    for start in waits:
        path: list[tuple[int, int]] = []
        at = start
        while at in waits and at not in path and at not in done:
            path.append(at)
            owner = waits[at][1].owners[0]
            at = (owner.pid, owner.thread)
        if at in path:
            cycles.append([waits[key] for key in path[path.index(at) :]])
        done.update(path)
    return cycles


def report() -> list[str]:
    """The table as lines of text, deadlocks first."""
    table = lock_table()
    lines = []
    for cycle in deadlocks(table):
        lines.append(f"DEADLOCK of {len(cycle)}: none of these can ever go on")
        for waiter, held in cycle:
            lines.append(f"  {waiter} waits for {held}, held by {held.owners[0]}")
    for held in sorted(table, key=lambda each: each.place):
        by = "; ".join(f"{owner}" + (f" for {owner.held_for:.1f} s" if owner.thread else "") for owner in held.owners)
        lines.append(f"{held}: {f'held by {by}' if by else 'not held'}")
        lines.extend(f"  {waiter} waits, {waiter.seconds:.1f} s" for waiter in held.waiters)
    return lines or ["no lock is held, and nobody waits"]
