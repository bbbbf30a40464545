"""A task: one frame in the task ring, and the states that it goes through."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from manycore._engine.policy import Policy

__all__ = ["NOT_PUBLISHED", "TASK_TRANSITIONS", "Past", "Task", "TaskState"]

NOT_PUBLISHED: Final = -1


class TaskState(Enum):
    """Where a task is."""

    NEW = "new"
    QUEUED = "queued"
    PUBLISHED = "published"
    WAITING = "waiting"
    DONE = "done"


TASK_TRANSITIONS: Final = {
    (TaskState.NEW, TaskState.QUEUED): "submit",
    (TaskState.QUEUED, TaskState.PUBLISHED): "published",
    (TaskState.QUEUED, TaskState.DONE): "cancel, drop",
    (TaskState.PUBLISHED, TaskState.QUEUED): "withdrawn, recalled, retried, or its worker died before it began",
    (TaskState.PUBLISHED, TaskState.WAITING): "failed, and is retried later",
    (TaskState.PUBLISHED, TaskState.DONE): "finished, failed, cancelled, dropped or split",
    (TaskState.WAITING, TaskState.QUEUED): "its time has come",
    (TaskState.WAITING, TaskState.DONE): "cancel, drop",
}


class Past:
    """What the item that a task is at has been through.

    Attributes:
        tries: How often it has begun and come to nothing.
        deaths: The certificates of the workers that died of it.
        due_ns: When it is to begin again, while the task is WAITING.
    """

    __slots__ = ("deaths", "due_ns", "tries")

    def __init__(self) -> None:
        self.tries = 0
        self.deaths: tuple[Any, ...] = ()
        self.due_ns = 0


class Task:
    """One frame: a call, or a chunk of a map.

    Args:
        sink: Who wants the results; the dispatcher only hands it back.
        function: What names the function to a worker; opaque here.
        payload: The encoded arguments.
        count: How many items the frame holds; 1 for a call.
        chunk: Whether the payload is a list of items.
        policy: What its items are promised; None for those without options.
        once: Whether only one worker can read the payload, because it then owns the memory: where another task could
            be published again, this one is split, which encodes its items anew.
        nbytes: The size of the payload.
    """

    __slots__ = (
        "chunk",
        "count",
        "function",
        "id",
        "nbytes",
        "once",
        "past",
        "payload",
        "policy",
        "received",
        "sink",
        "state",
        "ticket",
    )

    def __init__(
        self,
        sink: Any,
        function: Any,
        payload: Any,
        *,
        count: int = 1,
        chunk: bool = False,
        policy: Policy | None = None,
        once: bool = False,
        nbytes: int = 0,
    ) -> None:
        self.once = once
        self.nbytes = nbytes
        self.sink = sink
        self.function = function
        self.payload = payload
        self.count = count
        self.chunk = chunk
        self.policy = policy
        self.id = 0
        self.received = 0  # items whose results are here; the next one is the only one that may be running
        self.past: Past | None = None  # of the item at `received`
        self.ticket = NOT_PUBLISHED
        self.state = _NEW


_NEW = TaskState.NEW
