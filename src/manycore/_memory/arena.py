"""Recycled blocks: how the bytes of tasks and results cross from one process to another.

    one process                                     another
    Arena.put([b1, b2]) -> refs  ==  a record  ==>  ArenaView.take(ref) -> Block
    (a copy, into warm memory)                      (no copy: the block is now this process's)
    recycles  <=====================================  the last view of the block dies

A ref is two plain integers, good for one taking; a ref that was taken or released is refused, not followed.
An arena is one sparse memfd. It grows with what is put, recycles what comes back while its pages are warm
(ten times faster than fresh ones), and gives idle memory back: above `reserve_bytes` at once, the rest by `trim`.

Invariants:
    the pages of a block exist before anybody touches them: no access can fail for want of memory;
    the memory of an arena never exceeds its budget;
    only the process that made an arena hands out blocks.
If a process dies:
    who took a block: `reclaim_dead(owner)` recycles it; until then nobody gets it, and nobody waits for it.
    the allocator: what it had put can still be taken; the memory goes with the last descriptor.
If a process forks: the child keeps seeing what the parent held, as after any fork, though not a copy of it:
    blocks that were held at a fork are not recycled before the forked child has ended (or called exec).
Source: README.md of `_native`.
"""

from __future__ import annotations

import errno
import os
import resource
import select
from collections import namedtuple

from manycore._memory.available import available_bytes, require_bytes
from manycore._memory.segment import create_memfd, seal
from manycore._native import arena as _native
from manycore._native.arena import ArenaFull, Block, BlockArena, BlockView

TYPE_CHECKING = False  # typing and dataclasses are not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NamedTuple, Self
else:
    NamedTuple = object

__all__ = ["Arena", "ArenaFull", "ArenaStats", "ArenaView", "Block", "Ref", "default_budget"]

Ref = tuple[int, int]
"""(offset, length): where a block is, and its bytes. The first is below 2**64, the second below 2**48."""

# The address space of an arena, as a multiple of its budget: holes cost nothing, and regions of one size are
# never made into another.
_SPREAD = 16
_LEAST_FILE_BYTES = 1 << 30
_MOST_FILE_BYTES = 1 << 46

# Idle memory that an arena keeps while it is used: enough for both sides of a few large arrays.
_RESERVE_SHARE = 4  # a quarter of the budget,
_LEAST_RESERVE_BYTES = 64 << 20  # but at least this,
_MOST_RESERVE_BYTES = 512 << 20  # and at most this, in each arena

# An arena that nothing was put into for this long gives its idle memory back, but for enough to begin warm.
_REST_NS = 1_000_000_000
_LOOK_AGAIN_NS = 10_000_000_000  # while blocks are out
_KEPT_AT_REST_BYTES = 4 << 20


def default_budget(shares: int = 1) -> int:
    """Bytes that one of `shares` arenas may hold: half of the memory that is left now, in at most four parts.

    A budget is a bound and not a claim: together the arenas of many workers may be allowed more than there is.
    What is there is asked each time that an arena grows.
    """
    return max(64 << 20, available_bytes() // 2 // min(max(1, shares), 4))


class ArenaStats(NamedTuple):
    """What an arena holds.

    Attributes:
        blocks: Handed out and not given back.
        resident_bytes: Memory, at most `budget_bytes`.
        idle_bytes: The part of it in no block, kept warm; at most `reserve_bytes` while in use.
        budget_bytes: The bound of `resident_bytes`.
        reserve_bytes: The bound of `idle_bytes`.
        regions: Pieces of address space.
    """

    blocks: int
    resident_bytes: int
    idle_bytes: int
    budget_bytes: int
    reserve_bytes: int
    regions: int


if not TYPE_CHECKING:
    ArenaStats = namedtuple("ArenaStats", list(ArenaStats.__annotations__))  # noqa: PYI024  (without typing)


class Arena(BlockArena):
    """The allocator's side: `put` and `reserve`, `release`, `reclaim_dead`, `trim`.

    Args:
        budget_bytes: The most memory that it may hold; `put` raises `ArenaFull` beyond.
        name: What /proc/PID/maps shows.
        reserve_bytes: Idle memory kept while in use; a quarter of the budget, 64 to 512 MiB, by default.
        owner: What is written into blocks that this process takes; its pid by default.
        fd: An empty memfd that another process made for this one, so that it can read the arena from the first
            block on; taken over. None makes one.

    Raises:
        OSError: No memfd, no descriptor, or no memory for its first page.

    Process-safety: other processes use it through `ArenaView(fd)`; threads of this one may share it.
    """

    fd: int
    _tended = 0
    _rest_ns: int | None = None

    def __new__(
        cls,
        budget_bytes: int,
        name: str = "manycore:arena",
        *,
        reserve_bytes: int | None = None,
        owner: int | None = None,
        fd: int | None = None,
    ) -> Self:
        if budget_bytes < 1 << 20:
            raise ValueError(f"an arena has a budget of at least 1 MiB, not {budget_bytes} bytes")
        if reserve_bytes is None:
            reserve_bytes = min(max(budget_bytes // _RESERVE_SHARE, _LEAST_RESERVE_BYTES), _MOST_RESERVE_BYTES)
        file_bytes = min(max(budget_bytes * _SPREAD, _LEAST_FILE_BYTES), _MOST_FILE_BYTES)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY:
            file_bytes = min(file_bytes, limit)
        if fd is None:
            fd = create_memfd(name)
        try:
            os.ftruncate(fd, file_bytes)
            seal(fd)
            self = super().__new__(cls, fd, file_bytes, budget_bytes, min(reserve_bytes, budget_bytes), owner)
        except BaseException:
            os.close(fd)
            raise
        self.fd = fd
        return self

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound here: modules are emptied before
        fd = getattr(self, "fd", -1)
        if fd >= 0:
            self.fd = -1
            close(fd)

    def _room(self, size: int) -> None:
        require_bytes(size)

    def trim(self, keep_bytes: int = 0) -> None:
        """Give idle memory back to the system until at most `keep_bytes` of it are left. Wanted when idle."""
        _forget_ended_forks()
        super().trim(keep_bytes)

    def tend(self, now_ns: int) -> int | None:
        """Trim when nothing has been put for a second; to be called now and then by whoever waits for work.

        Args:
            now_ns: CLOCK_MONOTONIC.

        Returns:
            When to call again, on the same clock; None: not before something is put.
        """
        if self.puts != self._tended:
            self._tended = self.puts
            self._rest_ns = now_ns + _REST_NS
        elif self._rest_ns is not None and now_ns >= self._rest_ns:
            self.trim(_KEPT_AT_REST_BYTES)
            self._rest_ns = now_ns + _LOOK_AGAIN_NS if self._figures()[0] else None  # what is out may come back
        return self._rest_ns

    def stats(self) -> ArenaStats:
        """What it holds now."""
        return ArenaStats(*self._figures())


class ArenaView(BlockView):
    """The other processes' side: `take` and `look`.

    Args:
        fd: The arena's descriptor, taken over: closed with the view and the last block of it.
        owner: What is written into blocks that are taken, for `reclaim_dead`; this process's pid by default.
    """

    fd: int

    def __new__(cls, fd: int, owner: int | None = None) -> Self:
        self = super().__new__(cls, fd, owner)
        self.fd = fd
        return self

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound here: modules are emptied before
        fd = getattr(self, "fd", -1)
        if fd >= 0:
            self.fd = -1
            close(fd)


# Forks that met held blocks: number -> the read end of a pipe whose write end only the child has. The end of
# file says that the child, and whoever it forked, has ended or called exec.
_forks: dict[int, int] = {}
_next_pipe: tuple[int, int, int] | None = None


def _forget_ended_forks() -> None:
    if not _forks:
        return
    poll = select.poll()
    for pipe in _forks.values():
        if pipe >= 0:
            poll.register(pipe, 0)  # only the hang-up
    ended = {pipe for pipe, _ in poll.poll(0)}
    for number, pipe in list(_forks.items()):
        if pipe in ended:
            del _forks[number]
            os.close(pipe)
    _native.unpin(list(_forks))


def _before_fork() -> None:
    global _next_pipe
    _forget_ended_forks()
    if not _native.held_blocks():
        return  # what is pinned was dropped already: the new child cannot reach it
    number = _native.note_fork()
    try:
        read, write = os.pipe()
    except OSError as error:
        if error.errno not in {errno.EMFILE, errno.ENFILE}:
            raise
        _forks[number] = -1  # nothing to see its end by: the blocks stay until this process ends
        return
    _next_pipe = (number, read, write)


def _after_fork_in_parent() -> None:
    global _next_pipe
    if _next_pipe is not None:
        number, read, write = _next_pipe
        _next_pipe = None
        os.close(write)
        _forks[number] = read


def _after_fork_in_child() -> None:
    global _next_pipe
    _native.forget_pins()
    for pipe in _forks.values():
        if pipe >= 0:
            os.close(pipe)
    _forks.clear()
    if _next_pipe is not None:
        os.close(_next_pipe[1])
        _next_pipe = None


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
