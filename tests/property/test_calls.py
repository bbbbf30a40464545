"""The compiled call path beside the way that is right for everything.

Two desks get the same calls, the same steps of a worker and the same collections. One takes the compiled path where it
may; the other is made to take the long way always. After each step their books, their queues and their futures must
say the same.
"""

from __future__ import annotations

import threading
from concurrent.futures._base import CANCELLED_AND_NOTIFIED
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manycore._engine import calls, frames
from manycore._engine import settlement as settlement_module
from manycore._engine.calls import Line, Task
from manycore._engine.dispatch import Dispatcher
from manycore._engine.failure import dump_failure
from manycore._engine.future import Future
from manycore._engine.outbox import Outbox
from manycore._engine.policy import Policy
from manycore._engine.settlement import Settlement
from manycore._engine.task import TaskState
from manycore._memory import codec
from manycore._memory.segment import Segment
from manycore._native.ring import ResultRing, TaskRing
from manycore._native.step import Mutex
from manycore.errors import PoolClosed

SLOTS = 4


class Desk(Line):
    """An engine with one worker, which is played step by step."""

    def __init__(self, *, compiled: bool) -> None:
        self.compiled = compiled
        self._lock = Mutex()
        self._closed = self._unmanned = False
        self.segments = Segment.create(TaskRing.nbytes(SLOTS), "tasks"), Segment.create(8192 + 4096, "results")
        self.tasks = TaskRing(self.segments[0].buffer, SLOTS)
        self.dispatcher = Dispatcher(1)
        self.outbox = Outbox(self.tasks, arenas=2)
        self._wire(self.tasks, self.dispatcher, self.outbox)
        workforce: Any = SimpleNamespace(name="desk", rings=[], sights=list)
        self.settlement = Settlement(self.dispatcher, self.tasks, workforce, self.outbox)
        self.ring = ResultRing(self.segments[1].buffer, create=True)
        self.worker: Any = SimpleNamespace(index=0, ring=self.ring, inbox=[], parts=[], position=0, leaving=False)
        self.futures: list[Future[Any]] = []
        self.claimed: tuple[int, int, int, bytes] | None = None

    def check_open(self) -> None:
        if self._closed:
            raise PoolClosed("closed")

    def _call_at_length(self, future: Any, function: Any, arguments: Any, packed: Any, policy: Any) -> None:
        task = self.outbox.encode(function, arguments, future, policy=policy, packed=packed)
        future._task = task
        self.submit(task)

    def submit(self, task: Task) -> None:
        with self._lock:
            if self.dispatcher.submit(task) is not None:
                self.outbox.recall(self.dispatcher)
            self.outbox.pump(self.dispatcher)

    def send(self, function: Any, argument: Any, policy: Policy | None) -> None:
        future: Future[Any] = Future()
        self.futures.append(future)
        if self.compiled:
            self.call(future, function, (argument,), {}, policy)
        else:
            self._call_at_length(future, self.outbox.functions.get(function), ((argument,), {}), None, policy)

    def work(self, outcome: str) -> None:
        """The worker claims a task, or answers the one that it has."""
        if self.claimed is None:
            self.claimed = self.tasks.claim(0)
            return
        number = self.claimed[0]
        self.claimed = None
        self.tasks.begin(0, 0)
        if outcome == "plain":
            assert self.ring.put_plain(number, 0, 7, number)
        elif outcome == "text":
            assert self.ring.put_plain(number, 0, 7, "x" * (number % 50))
        elif outcome == "packed":
            self.ring.put(number, 0, frames.OK, 7, codec.dumps([np.arange(3), number]))
        elif outcome == "parts":
            data = codec.dumps([number] * 3)
            self.ring.put(number, 0, frames.OK, 7, data[:2], 1)
            self.ring.put(number, 0, frames.OK, 7, data[2:])
        elif outcome == "raised":
            self.ring.put(number, 0, frames.RAISED, 7, dump_failure(KeyError(number)))
        elif outcome == "returned":
            self.ring.put(number, 0, frames.RETURNED, 0, b"")
        self.tasks.done(0, 7, 1)

    def collect(self) -> None:
        with self._lock:
            self.settlement.empty(self.worker)
            if self.compiled:
                self.pump()
            else:
                self.outbox.pump(self.dispatcher)
        self.settlement.litter.clear()
        self.settlement.after.call(everything=True)

    def cancel(self, place: int) -> None:
        task = self.futures[place]._task
        if task is not None:
            if task.ticket >= 0 and self.tasks.withdraw(task.ticket):
                self.dispatcher.withdrawn(task)
            if self.dispatcher.cancel(task):
                for callback in self.futures[place]._finish(CANCELLED_AND_NOTIFIED, None, None, None):
                    callback(self.futures[place])

    def close(self) -> None:
        self.outbox.close()
        for segment in self.segments:
            segment.close()

    def says(self) -> Any:
        books = [(task.id, task.state, task.ticket, task.received, task.nbytes) for task in self.dispatcher.tasks()]
        futures = [
            (future._state, repr(future.result()) if future._exception is None and future._raw is None else None)
            if future.done() and not future.cancelled()
            else (future._state, None)
            for future in self.futures
        ]
        counts = self.settlement.items_done, self.settlement.items_failed, self.settlement.busy_ns
        return books, futures, counts, self.tasks.unclaimed(), self.ring.taken_bytes, self.dispatcher.ranked

    def ends(self) -> list[str]:
        return [
            "cancelled" if future.cancelled() else repr(future.exception() or future.result())
            for future in self.futures
            if future.done()
        ]


def add(number: int) -> int:
    return number + 1


captured = 5
FUNCTIONS: list[Any] = [add, len, lambda number: number + captured]
ARGUMENTS: list[Any] = [1, "a", "b" * 600, [1, 2], np.arange(100), object, 2**70, np.arange(20000)]
STEPS = st.one_of(
    st.tuples(st.just("send"), st.integers(0, 2), st.integers(0, len(ARGUMENTS) - 1), st.sampled_from([None, 0, 1])),
    st.tuples(
        st.just("work"), st.sampled_from(["plain", "plain", "plain", "text", "packed", "parts", "raised", "returned"])
    ),
    st.tuples(st.just("collect")),
    st.tuples(st.just("listen"), st.integers(0, 30)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
)


@given(st.lists(STEPS, max_size=60))
@settings(max_examples=150, deadline=None)
def test_both_ways_say_the_same(steps: list[tuple[Any, ...]]) -> None:
    desks = [Desk(compiled=True), Desk(compiled=False)]
    heard: list[list[int]] = [[], []]
    for step in steps:
        for which, desk in enumerate(desks):
            with pytest.MonkeyPatch.context() as patch:
                if not desk.compiled:
                    patch.setattr(settlement_module, "settle", lambda *_: (0, 0))
                if step[0] == "send":
                    policy = None if step[3] is None else Policy(priority=step[3])
                    desk.send(FUNCTIONS[step[1]], ARGUMENTS[step[2]], policy)
                elif step[0] == "work":
                    desk.work(step[1])
                elif step[0] == "collect":
                    desk.collect()
                elif step[1] < len(desk.futures):
                    if step[0] == "listen":
                        told = heard[which]
                        desk.futures[step[1]].add_done_callback(lambda _, n=step[1], told=told: told.append(n))
                    else:
                        desk.cancel(step[1])
        assert desks[0].says() == desks[1].says()
    assert desks[0].ends() == desks[1].ends()
    assert heard[0] == heard[1]
    for desk in desks:
        for future in desk.futures:
            if future.done():
                assert future._task is None
                assert future._arguments is None
        desk.close()


def test_a_closed_line_takes_nothing() -> None:
    desk = Desk(compiled=True)
    desk._closed = True
    with pytest.raises(PoolClosed):
        desk.send(add, 1, None)
    assert desk.dispatcher.outstanding == 0
    desk.close()


def test_the_lock_is_free_again_when_a_call_is_refused_under_it() -> None:
    desk = Desk(compiled=True)

    class Closing:
        """Closes the line when a call has found it open, and before it has the lock."""

        def get(self, function: Any) -> Any:
            desk._closed = True
            return functions.get(function)

    functions = desk.outbox.functions
    desk.outbox.functions = Closing()  # type: ignore[assignment]
    Closing.known = functions.known  # type: ignore[attr-defined]
    Closing.last_by_value = None  # type: ignore[attr-defined]
    desk._wire(desk.tasks, desk.dispatcher, desk.outbox)
    with pytest.raises(PoolClosed):
        desk.send(add, 1, None)
    assert not desk._lock.locked()
    desk.outbox.functions = functions
    assert desk.dispatcher.outstanding == 0
    desk.close()


def test_what_a_call_held_is_dropped_without_the_lock() -> None:
    desk = Desk(compiled=True)
    dropped: list[bool] = []

    class Keeper:
        def __del__(self) -> None:
            dropped.append(desk._lock.locked())

    desk.send(add, 1, None)
    desk.futures[0]._keeper = Keeper()
    desk.work("")
    desk.work("plain")
    desk.collect()
    assert dropped == [False]
    assert desk.futures[0].result() == 1
    desk.close()


def test_a_task_is_what_it_was_given() -> None:
    task = Task("sink", "function", b"payload", count=3, chunk=True, once=True, nbytes=7)
    assert (task.sink, task.function, task.payload) == ("sink", "function", b"payload")
    assert (task.count, task.chunk, task.once, task.nbytes) == (3, True, True, 7)
    assert (task.state, task.ticket, task.received, task.policy, task.past, task.id) == (
        TaskState.NEW, -1, 0, None, None, 0,
    )  # fmt: skip


def test_a_settled_future_stays_as_it_is() -> None:
    call = calls.Call()
    assert call._settle("FINISHED", 1, None, None, False) is True
    assert call._settle("FINISHED", 2, None, None, False) is False
    assert call.result() == 1
    waited = calls.Call()
    condition = threading.Condition()
    assert waited._share(condition) is condition
    assert waited._share(threading.Condition()) is condition
    assert waited._settle("FINISHED", 1, None, None, False) is None  # only who holds the condition may
    assert not waited.done()
    assert waited._settle("FINISHED", 1, None, None, True) is True
