"""The dispatcher: which task goes where, as a pure state machine. Events in, instructions out.

It knows no process, no clock and no shared memory, so that every order of events can be tested. The engine
(`local.py`) tells it what happened and does what it says; both under the engine's lock.

    events                               instructions
    submit(task)                         Recall, or None; peek() -> the task to publish next, or None
    published(task, ticket)
    recalled(tasks)
    finished(id, item, count)            the task whose items these are, or None (stale)
    failed(id, item, again)              Failed | Requeued | Postponed | Split
    undecodable(id)                      Failed | Split
    returned(id)                         Requeued
    worker_ready / worker_leaving
    worker_died(worker, sight)           [Failed | Requeued | Postponed | Split | Start | Vacant | Broken ...]
    tick(now, sights)                    [Interrupt | Kill | Overdue | Start ...], the next moment to ask again
    sentenced(sight)                     the worker is being killed for what it runs
    put_off(task, due)                   after Postponed: when it is to go on
    cancel(task), doom(task)             whether it was still ours to cancel; a doomed one's worker is to be killed
    resize(size), demand()               [Start | Retire ...]

A task is one frame in the task ring: a single call, or a chunk of `count` items of a map, which its worker
runs in order. Results come item by item, so `task.received` is both the number of results that are here and the
first item that is not. This is what makes a death exact: the items before it are done, the item at it may have
begun (it is the culprit), and those behind it have not and are published again.

Invariants:
    state is QUEUED    <=> the task waits in the backlog, with ticket == NOT_PUBLISHED
    state is WAITING   <=> it has failed, and begins again at its time, with ticket == NOT_PUBLISHED
    state is PUBLISHED <=> its frame is in the ring, or a worker has it
    state is DONE      <=> it is not in `_tasks`; nothing will be told of it again
    0 <= received <= count; received == count only in DONE
    an item's code begins at most 1 + retries times
    a page that shows the id of a task in `_tasks` is that of the worker which has the task now, or had it and died
    a doomed id is of no task in `_tasks`: it is forgotten when its worker has died or has ended it all the same
If a process dies: `worker_died` says who fails (only the item whose code may have begun), who goes back into
    the queue, and whether a new worker is to be started. Workers that die before they were ever ready count
    against the restart budget (`staff.py`), because then the fault is not a task's.
Source: the form is that of distributed's worker state machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from manycore._engine.backlog import Backlog
from manycore._engine.calls import Book, Task
from manycore._engine.frames import INITIALIZING
from manycore._engine.orders import (
    Failed,
    Interrupt,
    Kill,
    Postponed,
    Recall,
    Requeued,
    Retire,
    Split,
    Start,
)
from manycore._engine.staff import IllegalTransition, Staff, WorkerState
from manycore._engine.task import NOT_PUBLISHED, TASK_TRANSITIONS, Past, TaskState
from manycore._native.ring import DECODING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manycore._engine.orders import Instruction, Overdue, Sight
    from manycore._engine.policy import Policy

__all__ = ["Dispatcher", "IllegalTransition", "WorkerState"]

# Tasks published ahead for each worker while tasks differ in priority. What is published can be recalled, so more
# would only make a recall dearer; fewer would leave a worker without work while the parent is slow.
AHEAD: Final = 4

# How soon to look again for a doomed task that is on no page: its worker has claimed it and not begun.
DOOMED_LOOK_NS: Final = 2_000_000

# The priority that nothing published is below.
_NOTHING: Final = 1 << 64


_RECALL: Final = Recall()


class Dispatcher(Book):
    """The state of one engine: its tasks, its queue and its workers.

    Args:
        size: How many workers there are to be.
        limit_ns, notice_ns: Of their initializers; see `Staff`.

    Attributes:
        staff: The workers.
        retries: How often an item was tried again.
        ranked: How many tasks there are with a priority; while there are any, only `window` tasks are published ahead.
    """

    def __init__(self, size: int = 1, *, limit_ns: int = 0, notice_ns: int = 0) -> None:
        self.size = size
        self.staff = Staff(limit_ns, notice_ns)
        self._tasks: dict[int, Task] = {}
        self._backlog = Backlog()
        self._next_id = 1
        self.retries = 0
        self._timeouts: dict[int, int] = {}  # first_ns of a policy -> how many tasks in `_tasks` have it
        self._doomed: dict[int, int] = {}  # id of a task that is over while a worker has it -> its count of items
        self._waiting = 0  # tasks that are WAITING
        self.ranked = 0  # tasks in `_tasks` with a priority
        self._floor = 0  # while there are any: nothing published is of a lower priority

    # tasks

    def _move(self, task: Task, state: TaskState) -> None:
        if (task.state, state) not in TASK_TRANSITIONS:
            raise IllegalTransition(f"task {task.id}: {task.state.value} -> {state.value}")
        if state is _WAITING:
            self._waiting += 1
        elif task.state is _WAITING:
            self._waiting -= 1
        task.state = state

    def _end(self, task: Task) -> None:
        self._move(task, _DONE)
        task.ticket = NOT_PUBLISHED
        del self._tasks[task.id]
        if task.policy is not None:
            self._count(task.policy, -1)

    def _count(self, policy: Policy, change: int) -> None:
        """A task of this policy has come, or has ended."""
        if policy.first_ns:
            left = self._timeouts.get(policy.first_ns, 0) + change
            if left:
                self._timeouts[policy.first_ns] = left
            else:
                del self._timeouts[policy.first_ns]
        if policy.priority:
            self.ranked += change
            if not self.ranked:
                self._floor = 0

    def _requeue(self, task: Task) -> Requeued:
        self._move(task, _QUEUED)
        task.ticket = NOT_PUBLISHED
        self._backlog.push(task)  # it has waited its turn already
        return Requeued(task)

    def _again(self, task: Task) -> Requeued | Split:
        """What a worker has begun and not finished goes on elsewhere."""
        if not task.once:
            return self._requeue(task)
        self._end(task)
        return Split(task)

    def _retry(self, task: Task) -> Requeued | Postponed | Split:
        """The same after a failure, when its policy may want it to wait."""
        self.retries += 1
        if task.policy is None or task.past is None or not task.policy.backoff or task.once:
            return self._again(task)
        self._move(task, _WAITING)
        task.ticket = NOT_PUBLISHED
        return Postponed(task, task.past.tries)

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
        """Whether `tick` may have something to say."""
        return bool(self._timeouts or self._doomed or self._waiting or self.staff.timed)

    @property
    def window(self) -> int:
        """How many tasks may be published and not claimed, while they differ in priority."""
        return AHEAD * self.size

    def tasks(self) -> list[Task]:
        """The tasks that are not done, in order of submission."""
        return list(self._tasks.values())

    @property
    def by_id(self) -> dict[int, Task]:
        """The tasks that are not done."""
        return self._tasks

    def _name(self, task: Task) -> None:
        task.id = self._next_id
        self._next_id += 1
        self._tasks[task.id] = task

    def submit(self, task: Task) -> Recall | None:
        """A new task: it gets an id and waits in the queue."""
        if task.state is not _NEW:
            raise IllegalTransition(f"task {task.id} was submitted before")
        self._name(task)
        task.state = _QUEUED
        if task.policy is None and not self.ranked:
            self._backlog.plain.append(task)
            return None
        self._backlog.append(task)
        if task.policy is not None:
            self._count(task.policy, 1)
        return _RECALL if self.ranked and _priority(task) > self._floor else None

    def peek(self) -> Task | None:
        """The task that is to be published next."""
        return self._backlog.peek()

    def published(self, task: Task, ticket: int) -> None:
        """The task that `peek` gave is in the ring."""
        if task.state is not _QUEUED:
            raise IllegalTransition(f"task {task.id}: {task.state.value} -> published")
        self._backlog.pop(task)
        task.state = _PUBLISHED
        task.ticket = ticket
        self.ahead(task)

    def ahead(self, task: Task) -> None:
        """The same, from whoever has taken it out and written that down already."""
        if self.ranked:
            self._floor = min(self._floor, _priority(task))

    def recalled(self, tasks: Sequence[Task]) -> None:
        """These were published and not claimed, in this order, and have been taken back."""
        for task in reversed(tasks):
            if task.state is _PUBLISHED:
                self._move(task, _QUEUED)
                task.ticket = NOT_PUBLISHED
            self._backlog.push(task)
        self._floor = _NOTHING

    def finished(self, task_id: int, item: int, count: int = 1) -> Task | None:
        """`count` results came, from `item` on. The task, or None when they are of one that is done.

        Raises:
            IllegalTransition: The results are not the next ones of a task that a worker may have.
        """
        task = self._tasks.get(task_id)
        if task is None:
            if self._doomed:
                self._spare(task_id, item + count)
            return None
        if item + count <= task.received:
            return None
        if task.state is not _PUBLISHED or item != task.received or item + count > task.count:
            raise IllegalTransition(
                f"task {task_id} ({task.state.value}, {task.received} of {task.count}) got {count} from item {item} on"
            )
        task.received = item + count
        task.past = None
        if task.received == task.count:
            self._end(task)
        return task

    def _spare(self, task_id: int, items: int) -> None:
        """So many items of a task that is over are done: a doomed one whose worker is done with it is forgotten."""
        if items >= self._doomed.get(task_id, items + 1):
            del self._doomed[task_id]

    def _spent(self, task: Task) -> bool:
        """The item at `received` came to nothing: whether that was its last try."""
        policy = task.policy
        if policy is None or not policy.retries:
            return True
        if task.past is None:
            task.past = Past()
        task.past.tries += 1
        return task.past.tries > policy.retries

    def _died_of(self, task: Task, certificate: Any) -> bool:
        """A worker died of the item at `received`: whether that was its last try."""
        spent = self._spent(task)
        policy, past = task.policy, task.past
        if policy is None or past is None:
            return True
        past.deaths += (certificate,)
        return spent or len(past.deaths) > policy.deaths

    def _give_up_item(self, task: Task, *, running: bool, timeout: bool = False) -> list[Instruction]:
        """The item at `received` has failed for good; `running`: the rest of the chunk is still with its worker."""
        failed = Failed(task, task.received, timeout, () if task.past is None else task.past.deaths)
        task.received += 1
        task.past = None
        if task.received == task.count:
            self._end(task)
        elif not running:
            return [failed, self._again(task)]
        return [failed]

    def failed(self, task_id: int, item: int, *, again: bool = False) -> list[Instruction]:
        """The item raised in the worker.

        Args:
            task_id: The task.
            item: Its item.
            again: The exception is one that its policy retries: a call is tried again then, a chunk's item is over.
        """
        task = self._tasks.get(task_id)
        if task is None:
            self._spare(task_id, item + 1)
            return []
        if task.state is not _PUBLISHED or item != task.received:
            raise IllegalTransition(f"task {task_id} ({task.state.value}, {task.received} done): item {item} failed")
        if task.count == 1 and again and not self._spent(task):
            return [self._retry(self._rename(task))]
        return self._give_up_item(task, running=True)

    def undecodable(self, task_id: int) -> list[Instruction]:
        """The worker could not unpickle the task: a call fails, a chunk is taken apart to find the culprit."""
        task = self._tasks.get(task_id)
        if task is None:
            self._doomed.pop(task_id, None)
            return []
        if task.count == 1:
            return self._give_up_item(task, running=True)
        self._end(task)
        return [Split(task)]

    def returned(self, task_id: int) -> list[Instruction]:
        """The worker gives the task back: it could not begin it, for a reason that is not the task's."""
        task = self._tasks.get(task_id)
        self._doomed.pop(task_id, None)
        return [] if task is None else [self._requeue(self._rename(task))]

    def withdrawn(self, task: Task) -> None:
        """A published task was taken back from the ring, unclaimed."""
        self._requeue(task)

    def put_off(self, task: Task, due_ns: int) -> None:
        """After `Postponed`: the task goes on then. May be said again, as long as it waits."""
        if task.state is _WAITING:
            self._backlog.put_off(task, due_ns)

    def cancel(self, task: Task) -> bool:
        """Drop a task that is with no worker. A published one must be withdrawn from the ring first."""
        if task.state is not _QUEUED and task.state is not _WAITING:
            return False
        self._end(task)
        return True

    def doom(self, task: Task) -> bool:
        """Drop a task that a worker has claimed; `tick` says whom to kill for it. False when it is not with one."""
        if task.state is not _PUBLISHED:
            return False
        self._doomed[task.id] = task.count
        self._end(task)
        return True

    def drop(self, task: Task) -> None:
        """The engine gives the task up, wherever it is: nothing more is to be heard of it."""
        self._end(task)

    def mend(self) -> list[Task]:
        """A thread was interrupted (Ctrl-C) in the middle of an event: put in order what it left half done.

        Returns:
            Tasks that had just ended: whether their sinks have been told is not known.
        """
        ended = [task for task in self._tasks.values() if task.state is _DONE]
        known = [task for task in self._tasks.values() if task.state not in (_NEW, _DONE)]
        self._tasks = {task.id: task for task in known}
        self._timeouts.clear()
        self.ranked = 0
        for task in known:
            if task.policy is not None:
                self._count(task.policy, 1)
        self._floor = -_NOTHING if self.ranked else 0  # whatever is published: recall it for the next one
        self._backlog.rebuild(task for task in known if task.state is _QUEUED)
        waiting = [task for task in known if task.state is _WAITING]
        self._waiting = len(waiting)
        for task in waiting:
            self._backlog.put_off(task, task.past.due_ns if task.past is not None else 0)
        return ended

    # time

    def tick(
        self, now_ns: int, sights: Sequence[Sight], *, fill: bool = True
    ) -> tuple[list[Kill | Interrupt | Overdue | Start], int | None]:
        """Who has run too long, and when to ask again (ns; None while nothing waits for a time).

        Tasks whose wait is over are in the queue after this.

        Args:
            now_ns: The time.
            sights: What the pages show.
            fill: Whether vacant places are to be filled.
        """
        orders: list[Kill | Interrupt | Overdue | Start] = []
        if not self.timed:
            return orders, None
        for due in self._backlog.due(now_ns):
            self._requeue(due)
        # A task that begins after this look cannot be overdue before now + its own timeout.
        looks = [now_ns + ns for ns in self._timeouts]
        next_due = self._backlog.next_due()
        if next_due is not None:
            looks.append(next_due)
        if self._doomed:
            looks.append(now_ns + DOOMED_LOOK_NS)
        orders += self.staff.judge(sights, now_ns, looks)
        if fill:
            orders += self.staff.fill(now_ns, looks)
        for sight in sights:
            task = self._tasks.get(sight.task)
            if task is None:
                if sight.task in self._doomed:
                    orders.append(Kill(sight))
            elif task.policy is not None:
                order, look = self._judge(task.policy, sight, now_ns)
                if order is not None:
                    orders.append(order)
                if look is not None:
                    looks.append(look)
        return orders, min(looks, default=None)

    def _judge(self, policy: Policy, sight: Sight, now_ns: int) -> tuple[Kill | Interrupt | None, int | None]:
        """What a running item has coming, now and next."""
        order: Kill | Interrupt | None = None
        look = None
        if policy.timeout_ns:
            look = sight.started_ns + policy.timeout_ns
            if look <= now_ns:
                return Kill(sight), None
        if policy.soft_ns and sight.item != DECODING:
            worker = self.staff.workers.get(sight.worker)
            soft = sight.started_ns + policy.soft_ns
            key = (sight.task, sight.item, sight.started_ns)
            if soft > now_ns:
                look = soft
            elif worker is not None and worker.interrupted != key:
                worker.interrupted = key
                order = Interrupt(sight)
        return order, look

    def blames(self, sight: Sight) -> bool:
        """After `Kill`, with the worker stopped and all that it has put settled: whether it is still at this."""
        if sight.item == INITIALIZING:
            return self.staff.blames(sight)
        task = self._tasks.get(sight.task)
        if task is None:
            return sight.task in self._doomed
        return task.state is _PUBLISHED and (sight.item == DECODING or sight.item >= task.received)

    def sentence(self, sight: Sight) -> None:
        """The worker is being killed for what it runs, which is certain to be what `sight` shows."""
        self.staff.workers[sight.worker].sentenced = (sight.task, sight.item)

    def sentenced(self, sight: Sight) -> bool:
        """Whether that was said of it."""
        worker = self.staff.workers.get(sight.worker)
        return worker is not None and worker.sentenced == (sight.task, sight.item)

    # workers

    @property
    def workers(self) -> dict[int, WorkerState]:
        """The workers and their states."""
        return {index: worker.state for index, worker in self.staff.workers.items()}

    @property
    def vacant(self) -> bool:
        """Whether there are places for workers that would be there if there were work."""
        return len(self.staff.workers) + len(self.staff.vacancies) < self.size

    def worker_started(self, index: int) -> None:
        """A process was asked for in this place."""
        self.staff.start(index)

    def worker_ready(self, index: int) -> None:
        """The worker has run its initializer and takes tasks."""
        self.staff.ready(index)

    def worker_leaving(self, index: int, *, idle: bool = False) -> None:
        """The worker ends in order: it was told to, or has done its share, or had nothing to do for long (`idle`)."""
        self.staff.move(index, WorkerState.LEAVING)
        self.staff.workers[index].idle = idle

    def resize(self, size: int) -> list[Start | Retire]:
        """The pool is to have so many workers."""
        self.size = size
        orders: list[Start | Retire] = [Retire(index) for index in self.staff.resize(size)]
        orders += [Start(index) for index in self.staff.empty(size)]
        return orders

    def demand(self) -> list[Start]:
        """Who is to be started again, of those that had left for want of work."""
        wanted = min(self.size, len(self._tasks)) - self.staff.count()
        return [Start(index) for index in self.staff.empty(self.size)][: max(0, wanted)]

    def worker_died(self, sight: Sight, *, replace: bool, certificate: Any = None) -> list[Instruction]:
        """The worker's process is gone, and all that it had written has been reported.

        Args:
            sight: What it left in the ring and on its page.
            replace: Whether the pool goes on and its place is to be filled.
            certificate: How it ended; opaque here.
        """
        worker = self.staff.workers.pop(sight.worker)
        orders: list[Instruction] = []
        for task_id in sight.unbegun:
            unbegun = self._tasks.get(task_id)
            self._doomed.pop(task_id, None)
            if unbegun is not None:
                orders.append(self._requeue(unbegun))
        self._doomed.pop(sight.task, None)
        task = self._tasks.get(sight.task) if sight.task not in sight.unbegun else None
        if task is not None and task.state is _PUBLISHED:
            late = worker.sentenced == (sight.task, sight.item)
            orders += self._bereaved(task, sight, timeout=late, certificate=certificate)
        if worker.state is WorkerState.STARTING:
            orders += self.staff.fail(sight.worker, replace=replace)
        elif replace and sight.worker < self.size:
            if not worker.idle:
                orders.append(Start(sight.worker))
            else:
                orders += self.demand()
        return orders

    def _bereaved(self, task: Task, sight: Sight, *, timeout: bool, certificate: Any) -> list[Instruction]:
        """What becomes of the task that a dead worker had begun."""
        if sight.item == DECODING:
            if task.count > 1:
                self._end(task)
                return [Split(task)]
        elif sight.item < task.received:
            return [self._again(task)]  # it died between two items
        if timeout:
            over = self._spent(task) or task.policy is None or not task.policy.again_late
        else:
            over = self._died_of(task, certificate)
        if over:
            return self._give_up_item(task, running=False, timeout=timeout)
        return [self._retry(task)]


def _priority(task: Task) -> int:
    return 0 if task.policy is None else task.policy.priority


_NEW, _QUEUED, _PUBLISHED, _DONE = TaskState.NEW, TaskState.QUEUED, TaskState.PUBLISHED, TaskState.DONE
_WAITING: Final = TaskState.WAITING
