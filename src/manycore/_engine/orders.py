"""What passes between the dispatcher and the engine: what is seen of a worker, and what is to be done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from manycore._engine.calls import Task

__all__ = [
    "Broken",
    "Failed",
    "Instruction",
    "Interrupt",
    "Kill",
    "Overdue",
    "Postponed",
    "Recall",
    "Requeued",
    "Retire",
    "Sight",
    "Split",
    "Start",
    "Vacant",
]


class Sight(NamedTuple):
    """What a worker's page and the task ring show of it.

    Attributes:
        worker: Its index.
        unbegun: Ids of tasks that it had claimed without beginning.
        task: The id of the task whose code may have begun; 0 for none.
        item: The item of that task; DECODING while its arguments are unpickled.
        started_ns: When that item began.
    """

    worker: int
    unbegun: tuple[int, ...] = ()
    task: int = 0
    item: int = 0
    started_ns: int = 0


class Failed(NamedTuple):
    """This item is over: its worker died, or it ran too long (`timeout`), or it raised.

    `deaths` are the certificates of all workers that died of it, where it was tried again after a death.
    """

    task: Task
    item: int
    timeout: bool = False
    deaths: tuple[Any, ...] = ()


class Requeued(NamedTuple):
    """The task is in the queue again and begins at `task.received`."""

    task: Task


class Postponed(NamedTuple):
    """The task begins again at `task.received`, after a while that its policy knows: `put_off` is to be called."""

    task: Task
    attempt: int


class Recall(NamedTuple):
    """Take back what is published and not claimed: something of a higher priority has come."""


class Split(NamedTuple):
    """The task cannot go on as it is (unpickled as a whole, or read twice): encode its items from `received` on anew.

    The first of them inherits `task.past`.
    """

    task: Task


class Start(NamedTuple):
    """Start a worker in this place."""

    worker: int


class Retire(NamedTuple):
    """Tell this worker to leave after its task."""

    worker: int


class Kill(NamedTuple):
    """Kill this worker: what it runs, as seen in `sight`, has run too long or is not wanted any more."""

    sight: Sight


class Interrupt(NamedTuple):
    """Tell this worker that what it runs, as seen in `sight`, has run too long."""

    sight: Sight


class Overdue(NamedTuple):
    """This worker has been in its initializer for too long: find out where; `fatal`: kill it then."""

    sight: Sight
    fatal: bool


class Vacant(NamedTuple):
    """So many starts in a row have failed, the last one here: `put_off` is to be called. The others go on meanwhile.

    `beyond` counts those that were too many, `first` says that there was none before.
    """

    worker: int
    deaths: int
    beyond: int
    first: bool


class Broken(NamedTuple):
    """Give up: so many starts in a row have failed, and nobody is there."""

    deaths: int


Instruction = (
    Failed | Requeued | Postponed | Recall | Split | Start | Retire | Kill | Interrupt | Overdue | Vacant | Broken
)
