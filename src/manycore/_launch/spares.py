"""Children forked in advance, which wait for a request: the protocol, and what one does.

      parent                              spare                          zygote
      <-- it is there (pid) -----------   gets ready   <---------------  forks it
      LAUNCH, to that pid  ------------>  takes it: "I take it" ------>  it is a child, and the next is to be made
      <-- STARTED, as of any child ----   runs                           (nothing here is on a request's way)
      GONE  <---------------------------------------------------------   a spare that ended, and had not taken anything

There is a pair of sockets for each of a few places, as old as the zygote (`_native/c/brood.h`); each spare in turn has
an end of its place's. All that is sent there names the spare that it is for, who reads over what is for another. It is
there from its fork on: what it is asked for while it gets ready waits in its socket, and is done sooner than by another
fork.

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
import sys

from manycore._launch import wire, worker

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from typing import Any

__all__ = ["be", "decode", "receive"]

_FD_BYTES = 4
_END_BYTES = 8  # of the pid alone: that one is to end. A request is longer


def be(source: _socket.socket, say: int) -> tuple[tuple[Any, ...], list[int]] | None:
    """In a spare: wait for a request.

    Args:
        source: The spare's end of its place's sockets.
        say: The write end of the pipe by which it tells the zygote that it takes one.

    Returns:
        The request and its descriptors; None when it is to end.
    """
    pid = os.getpid()
    while True:
        record, fds, truncated = receive(source)
        if not record:
            return None
        if len(record) == _END_BYTES:
            if int.from_bytes(record, sys.byteorder) == pid:
                return None
            continue
        request = decode(record, fds)
        if request[-1] != pid:
            for fd in fds:
                os.close(fd)
            continue
        if truncated:
            return None
        os.write(say, array.array("Q", (pid, request[1], request[6])).tobytes())
        source.close()
        os.close(say)
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
