"""The backlog: tasks that wait to be published, those of a higher priority first, else in order.

    lane of priority p   a deque; its first task is published next, when no higher lane holds any
    the later ones       a heap by time: tasks that are tried again only after a while

Invariants:
    a QUEUED task is in its lane exactly once; a lane may also hold tasks that are not QUEUED any more, which are
        skipped when they come to its head
    while there are lanes besides the plain one, `order` names them all, highest first
"""

from __future__ import annotations

import heapq
import itertools
from bisect import insort
from collections import deque
from typing import TYPE_CHECKING

from manycore._engine.task import TaskState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from manycore._engine.calls import Task

__all__ = ["Backlog"]


class Backlog:
    """Who is next.

    Attributes:
        plain: The lane of priority 0. The fast path appends to it and looks at its head while `ranked` is false.
        ranked: Whether there is any other lane.
    """

    __slots__ = ("_lanes", "_later", "_numbers", "_order", "plain", "ranked")

    def __init__(self) -> None:
        self.plain: deque[Task] = deque()
        self.ranked = False
        self._lanes: dict[int, deque[Task]] = {0: self.plain}
        self._order: list[int] = []  # minus the priorities, so that it is sorted
        self._later: list[tuple[int, int, Task]] = []  # (due_ns, a number that no other has, task)
        self._numbers = itertools.count()

    def _lane(self, task: Task) -> deque[Task]:
        priority = task.policy.priority if task.policy is not None else 0
        lane = self._lanes.get(priority)
        if lane is None:
            lane = self._lanes[priority] = deque()
            if not self._order:
                self._order.append(0)
            insort(self._order, -priority)
            self.ranked = True
        return lane

    def append(self, task: Task) -> None:
        """It waits behind those of its priority."""
        self._lane(task).append(task)

    def push(self, task: Task) -> None:
        """It has waited its turn already."""
        self._lane(task).appendleft(task)

    def peek(self) -> Task | None:
        """The next one, which stays."""
        if not self.ranked:
            return _head(self.plain)
        for minus in tuple(self._order):
            task = _head(self._lanes[-minus])
            if task is not None:
                return task
            if minus:
                del self._lanes[-minus]
                self._order.remove(minus)
                self.ranked = len(self._order) > 1
        return None

    def pop(self, task: Task) -> None:
        """Take out the one that `peek` gave."""
        self._lane(task).popleft()

    def rebuild(self, tasks: Iterable[Task]) -> None:
        """Begin anew with these, in this order."""
        self.__init__()  # type: ignore[misc]
        for task in tasks:
            self.append(task)

    # Later

    def put_off(self, task: Task, due_ns: int) -> None:
        """It waits until then; a second call for the same task replaces the first."""
        if task.past is not None:
            task.past.due_ns = due_ns
        heapq.heappush(self._later, (due_ns, next(self._numbers), task))

    def due(self, now_ns: int) -> list[Task]:
        """Those whose time has come, which are no longer put off."""
        found = []
        while self._later and self._later[0][0] <= now_ns:
            due_ns, _, task = heapq.heappop(self._later)
            if task.state is TaskState.WAITING and task.past is not None and task.past.due_ns == due_ns:
                found.append(task)
        return found

    def next_due(self) -> int | None:
        """When the first of them comes."""
        while self._later and self._later[0][2].state is not TaskState.WAITING:
            heapq.heappop(self._later)
        return self._later[0][0] if self._later else None


def _head(lane: deque[Task]) -> Task | None:
    while lane:
        task = lane[0]
        if task.state is _QUEUED:
            return task
        lane.popleft()
    return None


_QUEUED = TaskState.QUEUED
