"""The states that a task goes through; the task itself is in `calls.pyx`."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

__all__ = ["NOT_PUBLISHED", "TASK_TRANSITIONS", "Past", "TaskState"]

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
