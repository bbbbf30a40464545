"""The way out: tasks are encoded, and put into the task ring.

    short payload    in the frame
    long payload     in the arena's blocks, which its worker then owns; see cargo.py
    no room there    in the spool, from which the worker reads a copy: slower, and always right

If a process dies: a worker: the arena reclaims what it had taken (`arena.reclaim_dead`), and what no worker took goes
    back with its task. The parent: the kernel frees it all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from manycore._engine import frames
from manycore._engine.calls import Task
from manycore._engine.cargo import Manifest
from manycore._engine.functions import FunctionTable
from manycore._engine.spool import Spool
from manycore._engine.task import TaskState
from manycore._memory import codec
from manycore._memory.arena import Arena, ArenaFull, default_budget
from manycore._native.codec import pack
from manycore._native.ring import INLINE_BYTES, now_ns

if TYPE_CHECKING:
    from manycore._engine.dispatch import Dispatcher
    from manycore._engine.functions import Function
    from manycore._engine.policy import Policy
    from manycore._native.ring import TaskRing

__all__ = ["Outbox"]

# Longest payload that travels in a slot, beside the frame's header.
_INLINE: Final = INLINE_BYTES - frames.HEADER.size


class Outbox:
    """What an engine sends with.

    Args:
        tasks: The task ring.
        arenas: How many arenas share this machine's memory: this one and the workers'.

    Attributes:
        functions: The functions that workers can load.
        arena: Where long payloads go.
    """

    def __init__(self, tasks: TaskRing, *, arenas: int, main_is_there: bool = False) -> None:
        self._tasks = tasks
        self._spool = Spool()
        self.functions = FunctionTable(self._spool, main_is_there=main_is_there)
        self.arena = Arena(default_budget(arenas), "manycore-arguments")
        self._large_bytes = 0  # of payloads that went beside their frames
        self._tending = False  # whether the collector gives the arena's memory back when nothing is put any more

    @property
    def fds(self) -> tuple[int, int]:
        """What workers need: the spool and the arena."""
        return self._spool.reader, self.arena.fd

    def bind(self, policy: Policy) -> Policy:
        """Send what a policy has to say to workers, once; then tasks of this engine may have it.

        Raises:
            TaskPicklingError: An exception class of `retry_on` cannot be pickled.
        """
        told = policy.told()
        if told is not None:
            place = self.functions.place(codec.dumps(told))
            policy.guard, policy.keeper = frames.WHERE.pack(place.offset, place.length), place
        return policy

    def encode(
        self,
        function: Function,
        value: Any,
        sink: Any,
        *,
        roots: tuple[str, ...] = (),
        policy: Policy | None = None,
        packed: bytes | None = None,
        **options: Any,
    ) -> Task:
        """A task. In the caller's thread, without locks.

        Args:
            function: What is called.
            value: The arguments, or the items of a chunk.
            sink: Who gets the results.
            roots: What messages call the parts of `value`.
            policy: What it is promised, bound to this engine.
            packed: The value as `pack` gave it, where that was tried before.
            options: As `Task` takes them.

        Raises:
            TaskPicklingError: A part of `value` cannot be pickled.
            OSError: Memory is short.
        """
        buffers: list[Any] = []
        payload = packed or pack(value) or codec.dumps(value, buffers=buffers, roots=roots)
        if not buffers and len(payload) <= (_INLINE if policy is None else _INLINE - len(policy.guard)):
            return Task(sink, function, payload, nbytes=len(payload), policy=policy, **options)
        nbytes = len(payload) + sum(buffer.nbytes for buffer in buffers)
        try:
            if policy is not None and policy.retries:
                raise ArenaFull  # another worker may have to read it again, as it is now
            manifest = Manifest(self.arena, payload, buffers)
        except (ArenaFull, OSError):
            if buffers:
                payload = codec.dumps(value, roots=roots)
            return Task(sink, function, self._spool.put(payload), nbytes=nbytes, policy=policy, **options)
        self._tend()
        return Task(sink, function, manifest, nbytes=nbytes, once=True, policy=policy, **options)

    def load(self, packed: bytes) -> Manifest | None:
        """Put the packed arguments of a call into a block; None when there is no room."""
        try:
            manifest = Manifest(self.arena, packed, ())
        except (ArenaFull, OSError):
            return None
        self._tend()
        return manifest

    def _tend(self) -> None:
        if not self._tending:
            self._tending = True
            self._tasks.alarm()

    def pump(self, dispatcher: Dispatcher) -> None:
        """Publish from the backlog while there is room. Under the engine's lock."""
        if dispatcher.ranked:  # only a few ahead, so that there is little to recall
            room = dispatcher.window - self._tasks.unclaimed()
            while room > 0 and (task := dispatcher.peek()) is not None and self.publish(task) >= 0:
                dispatcher.ahead(task)
                room -= 1
            return
        publish = self.publish
        while (task := dispatcher.peek()) is not None:
            if publish(task) < 0:
                return

    def recall(self, dispatcher: Dispatcher) -> None:
        """Take back what is published and not claimed, for something of a higher priority. Under the engine's lock."""
        dispatcher.recalled(self._tasks.recall(dispatcher.by_id, TaskState.QUEUED))

    def publish(self, task: Task) -> int:
        """Put a task into the ring; returns its ticket, or -1 when the ring is full. Under the engine's lock.

        The task is PUBLISHED then: the ring writes it down itself, so that no signal can come between.
        """
        function, payload, policy = task.function, task.payload, task.policy
        flags = function.flags if task.chunk else frames.CALL
        guard = b"" if policy is None else policy.guard
        if type(payload) is not bytes:
            flags, payload = self._large(flags, payload, _INLINE - len(guard))
            self._large_bytes += task.nbytes
        head = function.head if task.received == 0 else function.head_from(task.received)
        if guard:
            flags |= frames.GUARDED
            head += guard
        tries = 0 if task.past is None else task.past.tries
        return self._tasks.publish(task.id, tries, flags, head, payload, task, TaskState.PUBLISHED)

    def _large(self, flags: int, payload: Any, room: int) -> tuple[int, bytes]:
        """The flags and the frame's part of a payload that is not in the frame, which has so much room."""
        if type(payload) is Manifest:
            flags |= frames.PACKED
            if len(payload.data) <= room:
                return flags, payload.data
            if payload.range is None:
                payload.range = self._spool.put(payload.data)
            payload = payload.range
        return flags | frames.SPOOLED, frames.WHERE.pack(payload.offset, payload.length)

    @property
    def sent_bytes(self) -> int:
        """Bytes of tasks and functions that were sent so far."""
        return self._tasks.sent_bytes + self._large_bytes + self.functions.sent_bytes

    def tend(self) -> int | None:
        """Give idle memory back; returns when to come again (ns), None when there is nothing to give."""
        if not self._tending:
            return None
        self._tending = False  # before the look: a put meanwhile sets it again
        again = self.arena.tend(now_ns())
        self._tending |= again is not None
        return again

    def disown(self) -> None:
        """In a forked child: what was sent is the parent's. The arena knows of forks by itself."""
        self._spool.disown()

    def close(self) -> None:
        """Close what only sending needs; what was sent stays readable for those who have it."""
        self._spool.close()
