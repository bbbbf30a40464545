"""A queue in one process behaves as `queue.Queue` does, whatever is done to it in whatever order."""

from __future__ import annotations

import os
import queue
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from manycore import queues

items = (
    st.integers() | st.text() | st.binary(max_size=100) | st.lists(st.integers(), max_size=5)
    | st.sampled_from([32_700, 32_752, 65_504, 200_000]).map(os.urandom)
)  # fmt: skip


class QueueMachine(RuleBasedStateMachine):
    """The queue beside its model, the standard library's queue for threads."""

    @initialize(maxsize=st.sampled_from([0, 1, 2, 5]))
    def begin(self, maxsize: int) -> None:
        self.ours = queues.JoinableQueue(maxsize)
        self.model: queue.Queue[Any] = queue.Queue(maxsize)
        self.unfinished = 0
        self.shut = False

    @precondition(lambda self: not self.shut)
    @rule(item=items)
    def put(self, item: Any) -> None:
        try:
            self.model.put_nowait(item)
        except queue.Full:
            with pytest.raises(queue.Full):
                self.ours.put_nowait(item)
        else:
            self.ours.put(item, timeout=10)
            self.unfinished += 1

    @precondition(lambda self: not self.shut)
    @rule(some=st.lists(items, max_size=6))
    def put_many(self, some: list[Any]) -> None:
        done = self.ours.put_many(some, block=False)
        for item in some[:done]:
            self.model.put_nowait(item)
        self.unfinished += done
        assert done == len(some) or self.model.full()

    @rule()
    def get(self) -> None:
        try:
            item = self.model.get_nowait()
        except queue.Empty:
            with pytest.raises(queues.ShutDown if self.shut else queue.Empty):
                self.ours.get_nowait()
        else:
            assert self.ours.get(timeout=10) == item

    @rule(most=st.integers(1, 4))
    def get_many(self, most: int) -> None:
        if self.model.empty():
            return
        for item in self.ours.get_many(most):
            assert item == self.model.get_nowait()

    @rule()
    def task_done(self) -> None:
        if self.unfinished == 0:
            with pytest.raises(ValueError, match="too many"):
                self.ours.task_done()
        else:
            self.ours.task_done()
            self.unfinished -= 1
            if self.unfinished == 0:
                self.ours.join()

    @precondition(lambda self: not self.shut)
    @rule()
    def shutdown(self) -> None:
        self.ours.shutdown()
        self.shut = True
        with pytest.raises(queues.ShutDown):
            self.ours.put(1)

    @invariant()
    def sizes(self) -> None:
        if hasattr(self, "ours"):
            assert self.ours.qsize() == self.model.qsize()
            assert self.ours.empty() == self.model.empty()
            assert self.ours.full() == self.model.full()


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60)
TestQueueModel = QueueMachine.TestCase
