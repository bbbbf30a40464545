"""The dispatcher: which task goes where, as a pure state machine. Events in, instructions out.

It knows no process, no clock and no shared memory, so that every order of events can be tested. The engine
(`local.py`) tells it what happened and does what it says; both under the engine's lock.

    events                               instructions
    submit(task)                         peek() -> the task to publish next, or None
    published(task, ticket)
    finished(id, item, count)            the task whose items these are, or None (stale)
    failed(id, item)                     Failed | Requeued
    undecodable(id)                      Failed | Split
    returned(id)                         Requeued
    worker_ready / worker_leaving
    worker_died(worker, sight)           [Failed | Requeued | Split | Start | Broken ...]
    overdue(now, sights)                 [Kill ...], the next moment to ask again
    cancel(task)                         whether it was still ours to cancel

A task is one frame in the task ring: a single call, or a chunk of `count` items of a map, which its worker
runs in order. Results come item by item, so `task.received` is both the number of results that are here and the
first item that is not. This is what makes a death exact: the items before it are done, the item at it may have
begun (it is the culprit), and those behind it have not and are published again.

Invariants:
    state is QUEUED    <=> the task waits in the backlog, with ticket == NOT_PUBLISHED
    state is PUBLISHED <=> its frame is in the ring, or a worker has it
    state is DONE      <=> it is not in `_tasks`; nothing will be told of it again
    0 <= received <= count; received == count only in DONE
    an item's code begins at most 1 + retries times
    a page that shows the id of a task in `_tasks` is that of the worker which has the task now, or had it and died
If a process dies: `worker_died` says who fails (only the item whose code may have begun), who goes back into
    the queue, and whether a new worker is to be started. Workers that die before they were ever ready count
    against the restart budget, because then the fault is not a task's.
Source: the form is that of distributed's worker state machine; the restart budget is Erlang's.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from manycore._native.ring import DECODING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "NOT_PUBLISHED",
    "Broken",
    "Dispatcher",
    "Failed",
    "IllegalTransition",
    "Instruction",
    "Kill",
    "Requeued",
    "Sight",
    "Split",
    "Start",
    "Task",
    "TaskState",
    "WorkerState",
]

NOT_PUBLISHED: Final = -1

# Workers in a row that may die before they are ready, beyond one for each place of the pool. A crash in the
# bootstrap is a fault of the machine or of the installation, which another start does not mend.
SPARE_STARTS: Final = 3


class TaskState(Enum):
    """Where a task is."""

    NEW = "new"
    QUEUED = "queued"
    PUBLISHED = "published"
    DONE = "done"


_TASK_TRANSITIONS: Final = {
    (TaskState.NEW, TaskState.QUEUED): "submit",
    (TaskState.QUEUED, TaskState.PUBLISHED): "published",
    (TaskState.QUEUED, TaskState.DONE): "cancel, split",
    (TaskState.PUBLISHED, TaskState.QUEUED): "withdrawn, retried, or its worker died before it began",
    (TaskState.PUBLISHED, TaskState.DONE): "finished, failed, cancelled or split",
}


class WorkerState(Enum):
    """Where a worker is."""

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"


_WORKER_TRANSITIONS: Final = {
    (WorkerState.STARTING, WorkerState.READY): "worker_ready",
    (WorkerState.STARTING, WorkerState.LEAVING): "told to stop before it was ready",
    (WorkerState.READY, WorkerState.LEAVING): "worker_leaving",
}


class IllegalTransition(AssertionError):
    """An event that cannot follow what happened before: a bug of the engine."""


class Task:
    """One frame: a call, or a chunk of a map.

    Args:
        sink: Who wants the results; the dispatcher only hands it back.
        function: What names the function to a worker; opaque here.
        payload: The encoded arguments.
        count: How many items the frame holds; 1 for a call.
        chunk: Whether the payload is a list of items.
        retries: How often an item may begin again after its worker died, it ran too long, or it failed.
        timeout_ns: How long one item may run, in ns; 0 = as long as it likes.
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
        "payload",
        "received",
        "retries",
        "sink",
        "state",
        "ticket",
        "timeout_ns",
        "tries",
    )

    def __init__(
        self,
        sink: Any,
        function: Any,
        payload: Any,
        *,
        count: int = 1,
        chunk: bool = False,
        retries: int = 0,
        timeout_ns: int = 0,
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
        self.retries = retries
        self.timeout_ns = timeout_ns
        self.id = 0
        self.received = 0  # items whose results are here; the next one is the only one that may be running
        self.tries = 0  # times that the item at `received` has begun and come to nothing
        self.ticket = NOT_PUBLISHED
        self.state = _NEW


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
    """This item is over: its worker died, or it ran too long (`timeout`), or it raised."""

    task: Task
    item: int
    timeout: bool = False


class Requeued(NamedTuple):
    """The task is in the queue again and begins at `task.received`."""

    task: Task


class Split(NamedTuple):
    """The task cannot go on as it is (unpickled as a whole, or read twice): encode its items from `received` on anew.

    The first of them inherits `task.tries`.
    """

    task: Task


class Start(NamedTuple):
    """Start a worker in this place."""

    worker: int


class Kill(NamedTuple):
    """Kill this worker: what it runs, as seen in `sight`, has run too long."""

    sight: Sight


class Broken(NamedTuple):
    """Give up: workers die faster than they get ready."""

    deaths: int


Instruction = Failed | Requeued | Split | Start | Kill | Broken


class _Worker:
    __slots__ = ("sentenced", "state")

    def __init__(self) -> None:
        self.state = WorkerState.STARTING
        self.sentenced: tuple[int, int] | None = None  # (task, item) that ran too long


class Dispatcher:
    """The state of one engine: its tasks, its queue and its workers.

    Attributes:
        retries: How often an item was tried again.
    """

    def __init__(self) -> None:
        self._tasks: dict[int, Task] = {}
        self._backlog: deque[Task] = deque()  # in order; may hold tasks that are DONE or PUBLISHED by now
        self._workers: dict[int, _Worker] = {}
        self._next_id = 1
        self._timeouts: dict[int, int] = {}  # timeout in ns -> how many tasks in `_tasks` have it
        self._failed_starts = 0  # in a row
        self.retries = 0  # items that were tried again

    # tasks

    def _move(self, task: Task, state: TaskState) -> None:
        if (task.state, state) not in _TASK_TRANSITIONS:
            raise IllegalTransition(f"task {task.id}: {task.state.value} -> {state.value}")
        task.state = state

    def _end(self, task: Task) -> None:
        self._move(task, _DONE)
        task.ticket = NOT_PUBLISHED
        del self._tasks[task.id]
        if task.timeout_ns:
            left = self._timeouts[task.timeout_ns] - 1
            if left:
                self._timeouts[task.timeout_ns] = left
            else:
                del self._timeouts[task.timeout_ns]

    def _requeue(self, task: Task) -> Requeued:
        self._move(task, _QUEUED)
        task.ticket = NOT_PUBLISHED
        self._backlog.appendleft(task)  # it has waited its turn already
        return Requeued(task)

    def _again(self, task: Task) -> Requeued | Split:
        """What a worker has begun and not finished goes on elsewhere."""
        if not task.once:
            return self._requeue(task)
        self._end(task)
        return Split(task)

    def _rename(self, task: Task) -> Task:
        """Give it a new id: the page of the worker that had it shows the old one until it is cleared, or for ever."""
        del self._tasks[task.id]
        self._name(task)
        return task

    @property
    def outstanding(self) -> int:
        """Tasks that are not done."""
        return len(self._tasks)

    @property
    def timed(self) -> bool:
        """Whether any task that is not done has a timeout."""
        return bool(self._timeouts)

    def tasks(self) -> list[Task]:
        """The tasks that are not done, in order of submission."""
        return list(self._tasks.values())

    def _name(self, task: Task) -> None:
        task.id = self._next_id
        self._next_id += 1
        self._tasks[task.id] = task

    def submit(self, task: Task) -> None:
        """A new task: it gets an id and waits in the queue."""
        if task.state is not _NEW:
            raise IllegalTransition(f"task {task.id} was submitted before")
        self._name(task)
        task.state = _QUEUED
        self._backlog.append(task)
        if task.timeout_ns:
            self._timeouts[task.timeout_ns] = self._timeouts.get(task.timeout_ns, 0) + 1

    def peek(self) -> Task | None:
        """The task that is to be published next."""
        backlog = self._backlog
        while backlog:
            task = backlog[0]
            if task.state is _QUEUED:
                return task
            backlog.popleft()
        return None

    def published(self, task: Task, ticket: int) -> None:
        """The task that `peek` gave is in the ring."""
        if task.state is not _QUEUED:
            raise IllegalTransition(f"task {task.id}: {task.state.value} -> published")
        self._backlog.popleft()
        task.state = _PUBLISHED
        task.ticket = ticket

    def finished(self, task_id: int, item: int, count: int = 1) -> Task | None:
        """`count` results came, from `item` on. The task, or None when they are of one that is done.

        Raises:
            IllegalTransition: The results are not the next ones of a task that a worker may have.
        """
        task = self._tasks.get(task_id)
        if task is None:
            return None
        if item + count <= task.received:
            return None
        if task.state is not _PUBLISHED or item != task.received or item + count > task.count:
            raise IllegalTransition(
                f"task {task_id} ({task.state.value}, {task.received} of {task.count}) got {count} from item {item} on"
            )
        task.received = item + count
        task.tries = 0
        if task.received == task.count:
            self._end(task)
        return task

    def _spent(self, task: Task) -> bool:
        """The item at `received` came to nothing: whether that was its last try."""
        task.tries += 1
        if task.tries > task.retries:
            return True
        self.retries += 1
        return False

    def _give_up_item(self, task: Task, *, running: bool, timeout: bool = False) -> list[Instruction]:
        """The item at `received` has failed for good; `running`: the rest of the chunk is still with its worker."""
        failed = Failed(task, task.received, timeout)
        task.received += 1
        task.tries = 0
        if task.received == task.count:
            self._end(task)
        elif not running:
            return [failed, self._again(task)]
        return [failed]

    def failed(self, task_id: int, item: int) -> list[Instruction]:
        """The item raised in the worker. A call is tried again while it has retries; a chunk's item is over."""
        task = self._tasks.get(task_id)
        if task is None:
            return []
        if task.state is not _PUBLISHED or item != task.received:
            raise IllegalTransition(f"task {task_id} ({task.state.value}, {task.received} done): item {item} failed")
        if task.count == 1 and not self._spent(task):
            return [self._again(self._rename(task))]
        return self._give_up_item(task, running=True)

    def undecodable(self, task_id: int) -> list[Instruction]:
        """The worker could not unpickle the task: a call fails, a chunk is taken apart to find the culprit."""
        task = self._tasks.get(task_id)
        if task is None:
            return []
        if task.count == 1:
            return self._give_up_item(task, running=True)
        self._end(task)
        return [Split(task)]

    def returned(self, task_id: int) -> list[Instruction]:
        """The worker gives the task back: it could not begin it, for a reason that is not the task's."""
        task = self._tasks.get(task_id)
        return [] if task is None else [self._requeue(self._rename(task))]

    def withdrawn(self, task: Task) -> None:
        """A published task was taken back from the ring, unclaimed."""
        self._requeue(task)

    def cancel(self, task: Task) -> bool:
        """Drop a task that waits in the queue. A published one must be withdrawn from the ring first."""
        if task.state is not _QUEUED:
            return False
        self._end(task)
        return True

    def drop(self, task: Task) -> None:
        """The engine gives the task up, wherever it is: nothing more is to be heard of it."""
        self._end(task)

    # workers

    @property
    def workers(self) -> dict[int, WorkerState]:
        """The workers and their states."""
        return {index: worker.state for index, worker in self._workers.items()}

    def _move_worker(self, index: int, state: WorkerState) -> None:
        worker = self._workers[index]
        if worker.state is state:
            return
        if (worker.state, state) not in _WORKER_TRANSITIONS:
            raise IllegalTransition(f"worker {index}: {worker.state.value} -> {state.value}")
        worker.state = state

    def worker_started(self, index: int) -> None:
        """A process was asked for in this place."""
        if index in self._workers:
            raise IllegalTransition(f"worker {index} is there already")
        self._workers[index] = _Worker()

    def worker_ready(self, index: int) -> None:
        """The worker has run its initializer and takes tasks."""
        self._failed_starts = 0
        self._move_worker(index, WorkerState.READY)

    def worker_leaving(self, index: int) -> None:
        """The worker ends in order: it was told to, or has done its share."""
        self._move_worker(index, WorkerState.LEAVING)

    def worker_died(self, sight: Sight, *, replace: bool) -> list[Instruction]:
        """The worker's process is gone, and all that it had written has been reported.

        Args:
            sight: What it left in the ring and on its page.
            replace: Whether the pool goes on and its place is to be filled.
        """
        worker = self._workers.pop(sight.worker)
        orders: list[Instruction] = []
        for task_id in sight.unbegun:
            task = self._tasks.get(task_id)
            if task is not None:
                orders.append(self._requeue(task))
        task = self._tasks.get(sight.task) if sight.task not in sight.unbegun else None
        if task is not None and task.state is _PUBLISHED:
            orders += self._bereaved(task, sight, timeout=worker.sentenced == (sight.task, sight.item))
        if worker.state is WorkerState.STARTING:
            self._failed_starts += 1
            if self._failed_starts > SPARE_STARTS + len(self._workers):
                return [*orders, Broken(self._failed_starts)]
        if replace:
            orders.append(Start(sight.worker))
        return orders

    def _bereaved(self, task: Task, sight: Sight, *, timeout: bool) -> list[Instruction]:
        """What becomes of the task that a dead worker had begun."""
        if sight.item == DECODING:
            if task.count > 1:
                self._end(task)
                return [Split(task)]
        elif sight.item < task.received:
            return [self._again(task)]  # it died between two items
        if self._spent(task):
            return self._give_up_item(task, running=False, timeout=timeout)
        return [self._again(task)]

    def overdue(self, now_ns: int, sights: Iterable[Sight]) -> tuple[list[Kill], int | None]:
        """Who has run too long, and when to ask again (ns; None while no task has a timeout)."""
        kills: list[Kill] = []
        if not self._timeouts:
            return kills, None
        # A task that begins after this look cannot be overdue before now + its own timeout.
        again = now_ns + min(self._timeouts)
        for sight in sights:
            task = self._tasks.get(sight.task)
            if task is None or not task.timeout_ns:
                continue
            deadline = sight.started_ns + task.timeout_ns
            if deadline > now_ns:
                again = min(again, deadline)
            else:
                kills.append(Kill(sight))
        return kills, again

    def sentence(self, sight: Sight) -> None:
        """The worker is being killed for what it runs, which is certain to be what `sight` shows."""
        self._workers[sight.worker].sentenced = (sight.task, sight.item)


_NEW, _QUEUED, _PUBLISHED, _DONE = TaskState.NEW, TaskState.QUEUED, TaskState.PUBLISHED, TaskState.DONE
