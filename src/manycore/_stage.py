"""An actor's process: the object, and the loop that calls its methods.

      take a call -> unpickle -> call -> put the result into the caller's own queue

One thread calls the methods, in the order in which the calls came. Where the class has async methods, that thread runs
an event loop: calls still begin in order, and one that awaits lets others go on.

Invariants:
    at most one call is taken and not answered, but for those that await
    every call that was taken is answered, whatever it does: also where it raises SystemExit, or where its arguments,
        its result or its exception cannot be pickled or rebuilt
    a fork of this process answers nobody: it ends where it would
If a process dies: this one: `manycore.actor` tells what becomes of the calls. A caller: its queue is let go of when
    the next caller comes.
"""

from __future__ import annotations

import os
import pickle
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

from manycore._engine import frames, identity
from manycore._engine.cargo import Parcel
from manycore._engine.failure import dump_failure
from manycore._launch.worker import end_fork
from manycore._memory import codec
from manycore._memory.segment import receive_fd
from manycore._native.codec import is_plain
from manycore.queues import ShutDown, _Shared

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DIED", "FENCE", "HELLO", "NOTICE", "OVER", "READY", "Member", "Packed", "Records", "main", "open_records"]

Member = tuple[int, int, int, int, int]
"""A caller: its number, and its queue for results: pid, descriptor, device, inode."""

NOTICE: Final = 0  # the number of what is no call's result
READY: Final = "ready"  # kinds of notices: the object is made (the text of an error, where it could not be)
DIED: Final = "died"  # the process has died, and another takes its place
OVER: Final = "over"  # the actor is no more
HELLO: Final = ".hello"  # names that no method has: a caller introduces itself
FENCE: Final = ".fence"  # a caller wants to know that everything before was taken

_CO_ASYNC: Final = 0x80 | 0x100  # CO_COROUTINE, CO_ITERABLE_COROUTINE


class Packed:
    """What is pickled already: a plain head, the pickle, its buffers."""

    __slots__ = ("buffers", "data", "head")

    def __init__(self, head: tuple[Any, ...], data: bytes, buffers: list[Any]) -> None:
        self.head = head
        self.data = data
        self.buffers = buffers


class Records(_Shared):
    """A queue of plain tuples, and of plain heads with something pickled, which is not unpickled when it is taken."""

    def _encode(self, value: Packed) -> list[Any]:
        return [pickle.dumps(value.head, 5), value.data, *value.buffers]

    def _decode(self, data: bytes, buffers: list[bytearray]) -> tuple[Any, ...]:
        first, *rest = buffers
        return (*pickle.loads(data), Parcel(first, rest))  # type: ignore[arg-type]


def open_records(member: Member) -> Records:
    """A caller's queue.

    Raises:
        OSError: The caller is gone.
    """
    _, pid, fd, device, inode = member
    queue = Records.__new__(Records)
    queue._begin(receive_fd((pid, fd), (device, inode)), None)
    return queue


class _Others(dict[int, tuple[Member, Records]]):
    """The callers of the process that this one is a fork of: who would answer one, ends."""

    def __getitem__(self, number: int) -> tuple[Member, Records]:
        end_fork()


class _Stage:
    def __init__(self, thing: Any, parent: int) -> None:
        self.thing = thing
        self.parent = parent  # the number of the caller that launched this process
        self.callers: dict[int, tuple[Member, Records]] = {}
        os.register_at_fork(after_in_child=self.leave)

    def leave(self) -> None:
        """In a fork that a method has made: the method may come to its end there too, but the actor is elsewhere."""
        self.callers = _Others()

    def introduce(self, members: Iterable[Member]) -> None:
        for member in members:
            for number, (known, _) in list(self.callers.items()):
                if not os.path.exists(f"/proc/{known[1]}"):
                    del self.callers[number]
            if member[0] not in self.callers:
                try:
                    self.callers[member[0]] = (member, open_records(member))
                except OSError:  # gone before its turn: nobody to answer
                    continue

    def run(self, calls: Records) -> None:
        """Answer calls until there will be none."""
        get = calls.get
        while True:
            try:
                record = get()
            except ShutDown:
                return
            result = self.perform(record)
            if result is not None:  # of a callable that was not made by `async def`
                result.close()
                self.fail(
                    record[0], record[1], TypeError(f"{record[2]}() gave a coroutine, and there is no event loop")
                )

    def perform(self, record: tuple[Any, ...]) -> Any:
        """Call, and answer; or the coroutine that is to be awaited before the answer."""
        number, ident, name, args, *more = record
        try:
            caller = self.callers[number][1]
        except KeyError:
            if name == HELLO:
                self.introduce([args])
            return None
        if name[:1] == ".":  # FENCE, or HELLO of one that is known
            if ident:
                caller.put((ident, None))
            return None
        try:
            args, kwargs = args.open() if type(args) is Parcel else (args, more[0])
        except BaseException as error:
            caller.put((ident, frames.UNDECODABLE, dump_failure(error)))
            return None
        try:
            result = getattr(self.thing, name)(*args, **kwargs)
        except BaseException as error:  # also SystemExit: it is the call that ends, not the actor
            self.fail(number, ident, error)
            return None
        if type(result) is CoroutineType:
            return result
        self.answer(number, ident, result)
        return None

    def answer(self, number: int, ident: int, result: Any) -> None:
        caller = self.callers[number][1]
        if is_plain(result):
            caller.put((ident, result))
            return
        buffers: list[Any] = []
        try:
            data = codec.dumps(result, buffers=buffers, to_parent=number == self.parent)
        except BaseException as error:
            caller.put((ident, frames.UNPICKLABLE, dump_failure(error)))
            error.__traceback__ = None
        else:
            caller.put(Packed((ident, frames.OK), data, buffers))

    def fail(self, number: int, ident: int, error: BaseException) -> None:
        failure = dump_failure(error, to_parent=number == self.parent)
        self.callers[number][1].put((ident, frames.RAISED, failure))
        error.__traceback__ = None

    def run_loop(self, calls: Records) -> None:
        """As `run`, with an event loop."""
        import asyncio  # only where there are async methods: it costs every start some 40 ms
        import threading

        async def finish(record: tuple[Any, ...], result: Any) -> None:
            try:
                value = await result
            except BaseException as error:
                self.fail(record[0], record[1], error)
            else:
                self.answer(record[0], record[1], value)

        async def run() -> None:
            loop = asyncio.get_running_loop()
            taken: asyncio.Queue[tuple[Any, ...] | None] = asyncio.Queue()
            tasks: set[asyncio.Task[None]] = set()

            def read() -> None:
                try:
                    while True:
                        loop.call_soon_threadsafe(taken.put_nowait, calls.get())
                except ShutDown:
                    loop.call_soon_threadsafe(taken.put_nowait, None)

            threading.Thread(target=read, name="manycore actor", daemon=True).start()
            while (record := await taken.get()) is not None:
                result = self.perform(record)
                if result is not None:
                    task = loop.create_task(finish(record, result))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                    await asyncio.sleep(0)  # it begins before the next call does
            while tasks:
                await asyncio.wait(tasks)

        asyncio.run(run())


def _has_async(kind: type) -> bool:
    codes = (getattr(getattr(kind, name, None), "__code__", None) for name in dir(kind))
    return any(code is not None and code.co_flags & _CO_ASYNC for code in codes)


def main(payload: bytes, fds: list[int]) -> int:
    """An actor's life, in the process that was launched for it; returns its exit code."""
    setup: dict[str, Any] = pickle.loads(payload)
    calls_fd, replies_fd = fds
    calls, replies = Records.__new__(Records), Records.__new__(Records)
    calls._begin(calls_fd, None)
    replies._begin(replies_fd, None)
    codec.become_worker(setup["main"])
    identity.assume(setup["name"], setup["identity"])
    pid = os.getpid()
    try:
        kind = codec.load_function(setup["kind"])
        args, kwargs = codec.loads(setup["arguments"])
        stage = _Stage(kind(*args, **kwargs), setup["parent"][0])
        if os.getpid() != pid:
            end_fork()
    except BaseException as error:
        if os.getpid() != pid:
            end_fork()
        replies.put((NOTICE, READY, dump_failure(error)))
        return 1
    stage.callers[stage.parent] = (setup["parent"], replies)
    stage.introduce(setup["members"])
    replies.put((NOTICE, READY, b""))
    if _has_async(type(stage.thing)):
        stage.run_loop(calls)
    else:
        stage.run(calls)
    return 0
