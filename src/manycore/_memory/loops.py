"""Waiting in an event loop for what is in shared memory: one bell a loop, and no thread.

    coroutine                         loop
    try; nothing there                the bell is readable: empty it, and for each line
    stand in line, await a future         arm, look; if it is ready, wake the first in the line
    try again

A line is all coroutines of one loop that wait for one side of one thing. Who was woken tries, and then, whether it
took something, found nothing or was cancelled, the line looks again: so a wake-up is never lost with its receiver,
and none is given for which there was nothing.

Invariants:
    a coroutine takes what it waits for in the very step in which it returns, so a cancellation loses nothing
    a loop has a bell, and its lines have slots, only while somebody stands in line
If a process dies: as in `bells`; the loop looks by itself a few times a second while somebody waits.
Source: asyncio.Queue's wake-ups, over `bells`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from manycore._memory import bells

if TYPE_CHECKING:
    from manycore._memory.bells import Bell, NativeCase

__all__ = ["until_ready"]

_hubs: dict[asyncio.AbstractEventLoop, _Hub] = {}  # those with somebody in line


class _Hub:
    """The bell of a loop, and its lines."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.bell: Bell = bells.borrow()
        self.lines: dict[tuple[int, int], _Line] = {}
        self.period = bells.LOOK_SECONDS
        loop.add_reader(self.bell.fd, self.rung)
        self.timer = loop.call_later(self.period, self.tick)

    def rung(self) -> None:
        """Something has changed; nobody knows what."""
        self.bell.empty()
        for line in list(self.lines.values()):
            line.look()

    def tick(self) -> None:
        """Looks without having been rung."""
        self.timer = self.loop.call_later(self.period, self.tick)
        for line in list(self.lines.values()):
            line.look()

    def end(self) -> None:
        """Nobody stands in line."""
        self.timer.cancel()
        if not self.loop.is_closed():
            self.loop.remove_reader(self.bell.fd)
        self.bell.close()
        _hubs.pop(self.loop, None)


class _Line:
    """Who waits for one side of one thing, in order."""

    def __init__(self, hub: _Hub, key: tuple[int, int], case: NativeCase) -> None:
        self.hub = hub
        self.key = key
        self.case = case
        self.waiters: deque[asyncio.Future[None]] = deque()
        if not case.watch(hub.bell):
            hub.period = bells.LOOK_OFTEN_SECONDS
            hub.timer.cancel()
            hub.timer = hub.loop.call_later(hub.period, hub.tick)

    def look(self) -> None:
        """Wakes the first if it need not wait; closes the line when nobody is left."""
        while self.waiters and self.waiters[0].done():
            self.waiters.popleft()
        if not self.waiters:
            self.end()
            return
        self.case.arm()
        if self.case.ready():
            self.waiters.popleft().set_result(None)

    def end(self) -> None:
        """Nobody stands here."""
        if self.hub.lines.get(self.key) is self:
            self.case.unwatch()
            del self.hub.lines[self.key]
            if not self.hub.lines:
                self.hub.end()


async def until_ready(case: NativeCase) -> None:
    """Wait until the case is ready, or was for a moment; behind those who wait already."""
    loop = asyncio.get_running_loop()
    hub = _hubs.get(loop)
    if hub is None:
        hub = _hubs[loop] = _Hub(loop)
    key = (id(case.native), case.side)
    line = hub.lines.get(key)
    if line is None:
        line = hub.lines[key] = _Line(hub, key, case)
    waiter: asyncio.Future[None] = loop.create_future()
    line.waiters.append(waiter)
    line.look()
    try:
        await waiter
    finally:
        if not waiter.done():
            waiter.cancel()
        if not loop.is_closed():
            loop.call_soon(line.look)  # after this step, in which the caller tries again
