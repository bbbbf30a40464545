"""Children forked in advance, which wait for a request: as the zygote has them, and what one does.

      parent                              spare                          zygote
      <-- it is there (pid) -----------   gets ready   <---------------  forks it
      LAUNCH, to that pid  ------------>  takes it: "I take it" ------>  it is a child, and the next is to be made
      <-- STARTED, as of any child ----   runs                           (nothing here is on a request's way)
      GONE  <---------------------------------------------------------   a spare that ended, and had not taken anything

There is a pair of sockets for each of SLOTS places, as old as the zygote; each spare in turn has an end of its place's.
All that is sent there names the spare that it is for, and a spare reads over what is for another. It is there from its
fork on: what it is asked for while it gets ready waits in its socket, and is done sooner than by another fork.

Invariants:
    a place has one spare at most, from its fork until it takes a request or has been reaped
    a spare says that it takes a request before it says STARTED, so that once it is reaped it is certain whether it had
        taken one; if not, the parent is told GONE, and sends the request anew
    a spare is told to end by way of the same queue, so that it takes the request that was there before
If a process dies:
    a spare: see above. The zygote: the parent closes its ends, and the spares end. The parent: the zygote kills.
"""

from __future__ import annotations

import _socket
import array
import marshal
import os
import select
import time

from manycore._launch import wire, worker

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

__all__ = ["Spares", "receive"]

SLOTS = len(wire.SLOT_FDS)
_FD_BYTES = 4
_KEPT_S = 2.0  # a spare costs about 3 MB
_ROOM_S = 1.0  # for spares to end; longer only for one that somebody has stopped


class _Spare:
    __slots__ = ("slot", "told", "until")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.until = time.monotonic() + _KEPT_S
        self.told = False  # to end


class Spares:
    """The zygote's; `said` is ready to read when one has taken a request."""

    def __init__(self) -> None:
        self.said, self._say = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._ends = [_socket.socket(fileno=fd) for fd in wire.SLOT_FDS]
        self._pens = [_socket.socket(fileno=fd) for fd in wire.PEN_FDS]
        self._idle: dict[int, _Spare] = {}
        self._generation = 0  # of what the parent has told; it asks those of the last
        self.wanted = 1
        self._owed = False  # one was to be made, and all places had spares that were told to end
        self.due = 0.0  # when the next is to be made; 0: no process was launched since the last

    def times(self) -> list[float]:
        """When something is to be done."""
        times = [spare.until for spare in self._idle.values() if not spare.told]
        return [*times, self.due] if self.due else times

    def expire(self, now: float) -> None:
        """Have those end whose time is over."""
        for pid, spare in self._idle.items():
            if now >= spare.until:
                self._tell(pid, spare)

    def renew(self, generation: int) -> None:
        """Have those end that know less than the parent has told."""
        if generation != self._generation:
            self._generation = generation
            self.drop()

    def drop(self) -> None:
        """Have all end: they are out of date."""
        for pid, spare in self._idle.items():
            self._tell(pid, spare)

    def _tell(self, pid: int, spare: _Spare) -> None:
        if not spare.told:
            spare.told = True
            try:
                self._pens[spare.slot].send(marshal.dumps((wire.END, pid)), _socket.MSG_DONTWAIT)
            except OSError:  # full of what spares read over; it ends with this process
                pass

    def wait_for_room(self, wake: int, look: Callable[[], object]) -> None:
        """Have all end, and wait for that; `look` notes what has ended and what was said when `wake` is ready."""
        self.drop()
        poller = select.poll()
        poller.register(self.said, select.POLLIN)
        poller.register(wake, select.POLLIN)
        deadline = time.monotonic() + _ROOM_S
        while self._idle and (left := deadline - time.monotonic()) > 0:
            poller.poll(left * 1000)
            look()

    def place(self) -> int | None:
        """Where the next one is to be; None if there are enough."""
        if sum(not spare.told for spare in self._idle.values()) >= self.wanted:
            return None
        taken = {spare.slot for spare in self._idle.values()}
        slot = next((slot for slot in range(SLOTS) if slot not in taken), None)
        self._owed = slot is None
        return slot

    def keep(self, slot: int) -> list[int]:
        """Its descriptors."""
        return [wire.CONTROL_FD, wire.SLOT_FDS[slot], self._say]

    def made(self, pid: int, slot: int) -> None:
        """It is there, and may be asked."""
        self._idle[pid] = _Spare(slot)
        try:
            self._ends[slot].send(marshal.dumps((self._generation, pid, time.monotonic())), _socket.MSG_DONTWAIT)
        except OSError:  # nobody reads it; then nobody asks
            pass
        self.due = time.monotonic() if self.place() is not None else 0.0

    def ended(self, pid: int) -> None:
        """It has ended, or is a spare no more."""
        self._idle.pop(pid, None)
        if self._owed:
            self._owed = False
            self.due = time.monotonic()

    def taken(self) -> Iterator[tuple[int, int, bool]]:
        """Those that have taken a request since this was asked: pid, launch id, whether it may linger."""
        try:
            numbers = array.array("Q", os.read(self.said, 3 * 8 * 64))
        except BlockingIOError:
            return
        for pid, launch_id, linger in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
            self.ended(pid)
            yield pid, launch_id, bool(linger)

    def be(self, slot: int) -> tuple[tuple[Any, ...], list[int]] | None:
        """In a spare: wait for a request.

        Returns:
            The request and its descriptors; None when it is to end.
        """
        pid = os.getpid()
        source = self._ends[slot]
        while True:
            record, fds, truncated = receive(source)
            if not record:
                return None
            request = decode(record, fds)
            if request[-1] != pid:
                for fd in fds:
                    os.close(fd)
                continue
            if request[0] == wire.END or truncated:
                return None
            os.write(self._say, array.array("Q", (pid, request[1], request[6])).tobytes())
            source.close()
            os.close(self._say)
            return request, list(fds)


def receive(source: _socket.socket) -> tuple[bytes, array.array[int], bool]:
    """One record, its descriptors, and whether some of these were lost."""
    record, ancillary, flags, _ = source.recvmsg(
        wire.MAX_RECORD_BYTES, _socket.CMSG_SPACE(_FD_BYTES * 253), _socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _FD_BYTES])
    return record, fds, bool(flags & _socket.MSG_CTRUNC)


def decode(record: bytes, fds: array.array[int]) -> tuple[Any, ...]:
    """The request in a record, or in the memfd that comes with it, which then leaves `fds`."""
    request = marshal.loads(record)  # noqa: S302  # from our own parent
    if request[0] == wire.LONG and fds:
        request = marshal.loads(worker.read_all(fds.pop(0)))  # noqa: S302
    found: tuple[Any, ...] = request
    return found
