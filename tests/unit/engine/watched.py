"""Tasks of the dispatcher whose moves are noted, and policies with times of a test's own."""

from __future__ import annotations

from typing import ClassVar

from manycore._engine.calls import Task
from manycore._engine.policy import Policy
from manycore._engine.task import TASK_TRANSITIONS, TaskState


def promise(*, retries: int = 0, timeout: int = 0, soft: int = 0, priority: int = 0, backoff: float = 0) -> Policy:
    """A policy whose times are so short that no user could ask for them."""
    policy = Policy(retries=retries, priority=priority, backoff=backoff)
    policy.timeout_ns, policy.soft_ns, policy.first_ns = timeout, soft, soft or timeout
    return policy


class Watched(Task):
    """A task whose every change of state must be a row of the table."""

    _now = TaskState.NEW
    seen: ClassVar[set[tuple[TaskState, TaskState]]] = set()

    @property
    def state(self) -> TaskState:
        return self._now

    @state.setter
    def state(self, state: TaskState) -> None:
        assert (self._now, state) in TASK_TRANSITIONS
        self.seen.add((self._now, state))
        self._now = state
