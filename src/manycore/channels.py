"""Channels: hand an item over from one process to another, or to all who listen.

    Channel()                     a rendezvous: `send` returns when a receiver has the item
    Channel(capacity=n)           `send` returns when the item is in the channel, which holds n
    broadcast(capacity=n)         every receiver gets every item that is sent after it has subscribed

A channel is closed once, by anybody: what was sent before is still received, then there is `ChannelClosed`. It may be
sent to processes that run already, and waited for beside other things (`manycore.select`), to receive and to send.

Invariants:
    what `send` has returned for has been received (capacity 0) or will be, once, by whoever comes first
    an item for which `send` raised was not received, and will not be
If a process dies:
    sending: its item is received once, or not at all.
    receiving: the item that it was taking is lost with it; nobody waits for it.
    having subscribed to a broadcast: its place is freed when a sender needs the room, within some 50 ms.
    waiting: nothing.
Unlike a Queue: it ends; a rendezvous tells the sender that the item has arrived.
Source: Hoare, "Communicating Sequential Processes"; Go's channels. `_native/channel.pyx`, `c/broadcast.h`.
"""

from __future__ import annotations

import os
from queue import Empty
from typing import TYPE_CHECKING, Any, Literal, Self

from manycore import errors
from manycore._launch.arguments import integer
from manycore._memory import bells
from manycore._native.channel import RecordBroadcast, RecordChannel
from manycore.queues import ShutDown, _Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Broadcast", "Channel", "Receiver", "broadcast"]

_RECEIVES, _SENDS = 0, 1  # the sides that can be watched
_POLICIES = ("block", "drop-oldest", "disconnect")  # in the order of mc_slow


# The compiled class comes first: it is what makes the objects.


class _ChannelMemory(RecordChannel, _Shared):
    """The queue in which a channel keeps its items."""


class _BroadcastMemory(RecordBroadcast, _Shared):
    """The queue from which all receivers read."""

    _one_reader = False


def _closed(what: object) -> errors.ChannelClosed:
    return errors.ChannelClosed(f"{what!r} was closed")


class Channel:
    """A way for items from any process to any other, which can be closed.

    Args:
        capacity: Items that are held for receivers; 0 is a rendezvous, in which `send` waits for the receiver.

    Process-safety: any thread of any process may send, receive and close; it may be sent to running processes.
    If a process dies: nobody waits for it; its item arrives once or not at all.
    """

    __slots__ = ("__weakref__", "_memory")

    def __init__(self, capacity: int = 0) -> None:
        capacity = integer("capacity", capacity, least=0)
        self._memory = _ChannelMemory(max(capacity, 1))
        if capacity == 0:
            self._memory._begin_channel()

    @property
    def capacity(self) -> int:
        """Items that are held for receivers."""
        return 0 if self._memory._meets else self._memory._maxsize

    @property
    def closed(self) -> bool:
        """Whether it was closed; there may be items still."""
        return self._memory._is_shut

    def __len__(self) -> int:
        return 0 if self._memory._meets else self._memory.qsize()

    def __bool__(self) -> bool:
        return True

    def send(self, item: Any, timeout: float | None = None) -> None:
        """Send an item.

        Args:
            item: It is pickled here and now.
            timeout: Seconds to wait at most, for everything; None is for ever. 0 sends where there is room, and, in a
                rendezvous, where a receiver waits.

        Raises:
            TimeoutError: Nobody took it, or there was no room, in time. It will not be received.
            ChannelClosed: The channel is closed. It will not be received.
            TaskPicklingError: The item cannot be pickled; the message says which part.
        """
        if not self._send(self._memory._encoded(item), timeout):
            raise TimeoutError(f"nothing could be sent into {self!r} within {timeout} s")

    def _send(self, records: list[Any], timeout: float | None) -> bool:
        try:
            if self._memory._meets:
                return self._memory._hand_over(records, timeout)
            return self._memory._put_encoded(records, timeout)
        except ShutDown:
            raise _closed(self) from None

    def recv(self, timeout: float | None = None) -> Any:
        """Receive an item, the one that was sent first.

        Args:
            timeout: Seconds to wait at most, for everything; None is for ever, 0 only looks.

        Raises:
            TimeoutError: There was none in time.
            ChannelClosed: The channel is closed, and all that was sent has been received.
        """
        try:
            return self._memory.get(True, timeout)
        except Empty:
            raise TimeoutError(f"nothing was received from {self!r} within {timeout} s") from None
        except ShutDown:
            raise _closed(self) from None

    def close(self) -> None:
        """Close it for all processes: what was sent is still received. Who waits to send gets ChannelClosed."""
        self._memory.shutdown()

    def sending(self, item: Any) -> Sending:
        """For `select`: sends the item when that need not wait.

        Args:
            item: It is pickled here and now.
        """
        return Sending(self, self._memory._encoded(item))

    def receiving(self) -> Receiving:
        """For `select`: receives an item when there is one; the channel itself only says that there is one."""
        return Receiving(self)

    def __iter__(self) -> Iterator[Any]:
        """The items, until the channel is closed and empty."""
        while True:
            try:
                item = self.recv()
            except errors.ChannelClosed:
                return
            yield item

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rebuild, (type(self), self._memory)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of capacity {self.capacity} at {id(self):#x}>"

    def _select_case(self) -> bells.Case:
        return bells.NativeCase(self, self._memory, _RECEIVES, lambda: self._memory._ready(_RECEIVES))


def _rebuild(kind: Any, memory: Any) -> Any:
    made = kind.__new__(kind)
    made._memory = memory
    return made


class _Performed(bells.NativeCase):
    performs = True


class Sending:
    """An item that `select` is to send. When `select` returns it, it has been sent; may be used again.

    Attributes:
        channel: Where to.
    """

    __slots__ = ("_records", "channel")

    def __init__(self, channel: Channel, records: list[Any]) -> None:
        self.channel = channel
        self._records = records

    def _select_case(self) -> bells.Case:
        return _Performed(self, self.channel._memory, _SENDS, lambda: self.channel._send(self._records, 0))


class Receiving:
    """A place for the item that `select` is to receive. When `select` returns it, it has; may be used again.

    Attributes:
        channel: Where from.
        closed: Whether the channel turned out to be closed and empty; then there is no item.
    """

    __slots__ = ("_item", "channel", "closed")

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.closed = False
        self._item: Any = None

    @property
    def item(self) -> Any:
        """What was received last.

        Raises:
            ChannelClosed: The channel is closed, and all that was sent has been received.
        """
        if self.closed:
            raise _closed(self.channel)
        return self._item

    def _receive(self) -> bool:
        try:
            self._item = self.channel.recv(0)
        except errors.ChannelClosed:
            self.closed = True
        except TimeoutError:
            return False
        return True

    def _select_case(self) -> bells.Case:
        return _Performed(self, self.channel._memory, _RECEIVES, self._receive)


def broadcast(capacity: int = 1024, *, slow: Literal["block", "drop-oldest", "disconnect"] = "block") -> Broadcast:
    """A channel of which every receiver gets every item.

    Args:
        capacity: Items by which the slowest receiver may be behind.
        slow: What happens to a receiver that is further behind: "block" lets the sender wait for it, "drop-oldest"
            moves it past the oldest items (`Receiver.missed` counts them), "disconnect" closes it for this receiver.

    Returns:
        The broadcast: to send, and for other processes to subscribe.
    """
    return Broadcast(capacity, slow=slow)


class Broadcast:
    """The sending side of a broadcast; see `broadcast`.

    Process-safety: any thread of any process may send, subscribe and close; it may be sent to running processes.
    If a process dies: a dead receiver delays a sender by some 50 ms at most, once.
    """

    __slots__ = ("__weakref__", "_memory")

    def __init__(self, capacity: int = 1024, *, slow: Literal["block", "drop-oldest", "disconnect"] = "block") -> None:
        capacity = integer("capacity", capacity, least=1)
        if slow not in _POLICIES:
            raise ValueError(f"slow is one of {', '.join(map(repr, _POLICIES))}, not {slow!r}")
        self._memory = _BroadcastMemory(capacity)
        self._memory._begin_broadcast(_POLICIES.index(slow))

    @property
    def capacity(self) -> int:
        """Items by which the slowest receiver may be behind."""
        return self._memory._maxsize

    @property
    def slow(self) -> str:
        """What happens to a receiver that is further behind."""
        return _POLICIES[self._memory._slow]

    @property
    def receivers(self) -> int:
        """How many living receivers there are, this moment."""
        return self._memory._receivers()

    def subscribe(self) -> Receiver:
        """A receiver in this process, of all that is sent from now on.

        Raises:
            OSError: There are 48 living receivers already.
        """
        return Receiver(self)

    def send(self, item: Any, timeout: float | None = None) -> None:
        """Send an item to all receivers. Where there are none, it is gone.

        Args:
            item: It is pickled once, here and now.
            timeout: Seconds to wait at most for the slowest receiver; None is for ever.

        Raises:
            TimeoutError: A receiver was behind all the time; nobody gets the item. With `slow="block"` alone.
            ChannelClosed: It was closed.
            TaskPicklingError: The item cannot be pickled; the message says which part.
        """
        try:
            sent = self._memory._send(self._memory._encoded(item), timeout)
        except ShutDown:
            raise _closed(self) from None
        if not sent:
            raise TimeoutError(f"a receiver of {self!r} was {self.capacity} items behind for {timeout} s")

    def close(self) -> None:
        """Close it for all processes: receivers get what was sent, then ChannelClosed."""
        self._memory.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rebuild, (type(self), self._memory)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of capacity {self.capacity}, slow={self.slow!r}, at {id(self):#x}>"


class Receiver:
    """One who gets every item of a broadcast; made by `Broadcast.subscribe`, in the process that receives.

    Process-safety: threads of the process that subscribed. It cannot be sent; send the broadcast, and subscribe there.
    If a process dies: its place is freed when a sender needs the room.
    """

    __slots__ = ("__weakref__", "_memory", "_pid", "_place", "broadcast")

    def __init__(self, broadcast: Broadcast) -> None:
        self._place = -1
        self.broadcast = broadcast
        self._memory = broadcast._memory
        self._pid = os.getpid()
        self._place = self._memory._join_receivers()
        if self._place < 0:
            raise OSError(f"{broadcast!r} has as many receivers as it can have")

    @property
    def missed(self) -> int:
        """Items that it was moved past because it was slow."""
        return self._memory._state(self._check())[1]

    def __len__(self) -> int:
        return self._memory._state(self._check())[2]

    def __bool__(self) -> bool:
        return True

    def _check(self) -> int:
        if self._place < 0:
            raise ValueError("this receiver was closed")
        if self._pid != os.getpid():
            raise RuntimeError("a receiver belongs to the process that subscribed; subscribe in this one")
        return self._place

    def recv(self, timeout: float | None = None) -> Any:
        """Receive the next item.

        Args:
            timeout: Seconds to wait at most, for everything; None is for ever, 0 only looks.

        Raises:
            TimeoutError: There was none in time.
            ChannelClosed: The broadcast was closed, and this receiver has got everything; or it was too slow, and
                the broadcast disconnects those.
        """
        place = self._check()
        try:
            got = self._memory._receive(place, timeout)
        except ShutDown:
            raise _closed(self.broadcast) from None
        if got is None:
            raise TimeoutError(f"nothing was received from {self.broadcast!r} within {timeout} s")
        if got is False:
            raise errors.ChannelClosed(f"this receiver was more than {self.broadcast.capacity} items behind")
        return got[0]

    def __iter__(self) -> Iterator[Any]:
        """The items, until the broadcast is closed and this receiver has all, or was disconnected."""
        while True:
            try:
                item = self.recv()
            except errors.ChannelClosed:
                return
            yield item

    def close(self) -> None:
        """Receive no more; nobody waits for this receiver from now on."""
        place, self._place = self._place, -1
        if place >= 0 and self._pid == os.getpid():
            self._memory._leave_receivers(place)

    def __del__(self) -> None:
        if getattr(self, "_place", -1) >= 0:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a receiver belongs to the process that subscribed: send its broadcast, and subscribe there")

    def _ready(self) -> bool:
        if self._place < 0:
            return True
        goes_on, _, unread = self._memory._state(self._place)
        return unread > 0 or not goes_on or self._memory._is_shut

    def _select_case(self) -> bells.Case:
        self._check()
        return bells.NativeCase(self, self._memory, _RECEIVES, self._ready)
