"""The settlement: what becomes of the records that workers have put, and of the workers that have died.

    a record       -> the dispatcher: whose it is -> the task's sink, which keeps the result
    a dead worker  -> its records first, then its slots, then its page -> the dispatcher: who pays, who goes on,
                      who takes its place

All is called by the thread whose turn it is to drain, under the engine's lock. What has to run without it (callbacks,
going on with a map, encoding anew) is put into `after` (`aftermath.py`).

Invariants:
    a record that was taken from a ring is settled once: it stays in its worker's inbox until then
    a worker's page is looked at only after its ring has been read to the end and its slots have been repaired
If a process dies: that is what `bury` is for.
If Ctrl-C comes here: it waits until the records at hand are settled (`SHIELD`). If the handler of another signal raises
    here: records that were taken are in their worker's inbox for the next thread; a result that was in hand may be
    lost, which `reconcile` finds out and turns into an error.
"""

from __future__ import annotations

import signal
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from manycore import errors
from manycore._engine import frames, log_sink
from manycore._engine.aftermath import Aftermath
from manycore._engine.calls import settle
from manycore._engine.death import death_error, describe_item
from manycore._engine.failure import load_failure
from manycore._engine.functions import name_of
from manycore._engine.orders import Broken, Failed, Interrupt, Kill, Overdue, Postponed, Retire, Split, Start, Vacant
from manycore._engine.policy import BACKOFF_MOST
from manycore._engine.settings import Stats
from manycore._engine.task import TaskState
from manycore._native.ring import MORE, SHIELD, BrokenRing, now_ns
from manycore.errors import RemoteTraceback, ResultLost

if TYPE_CHECKING:
    from collections.abc import Callable

    from manycore._engine.calls import Task
    from manycore._engine.dispatch import Dispatcher
    from manycore._engine.orders import Instruction, Sight
    from manycore._engine.outbox import Outbox
    from manycore._engine.workforce import Record, Worker, Workforce
    from manycore._native.ring import TaskRing

__all__ = ["Settlement"]

# A worker that was killed for its deadline, or could not be stopped for it, is looked at again after this time.
RETRY_KILL_NS: Final = 2_000_000

# How long a place stays vacant whose starts have failed too often: at first, and at the most, in seconds. What the
# machine lacks for a moment is soon there again; what it lacks for good is not worth a process more often.
VACANT_LEAST: Final = 0.1
VACANT_MOST: Final = 60.0


class Settlement:
    """Settles records and deaths.

    Args:
        dispatcher, tasks, workforce, outbox: The engine's.

    Attributes:
        after: What is to be called without locks.
        litter: What calls that are over held, to be dropped without locks: it may be the user's.
        reason: Why the pool cannot go on, once it cannot.
        owed: Tasks that are done with as such, and whose items are not yet sent one by one.
        answers: What users' backoffs have said: when a task goes on (ns), or that it does not.
        found: Where workers were that are long in their initializers.
        items_done, items_failed: How many items gave a result, and how many did not.
        logged: Whether log records came that are not waited for yet.
        busy_ns: Time that workers spent inside the user's functions.
    """

    def __init__(self, dispatcher: Dispatcher, tasks: TaskRing, workforce: Workforce, outbox: Outbox) -> None:
        self._dispatcher = dispatcher
        self._tasks = tasks
        self._workforce = workforce
        self._outbox = outbox
        self.after = Aftermath()
        self.litter: list[Any] = []
        self.reason: BaseException | None = None
        self.owed: set[Task] = set()
        self.answers: deque[tuple[Task, int | BaseException]] = deque()
        self.found: deque[tuple[Overdue, str]] = deque()
        self._hand: Task | None = None  # whose record is being told of; for who is interrupted meanwhile
        self.items_done = self.items_failed = 0
        self.busy_ns = 0
        self.logged = False

    def then(self, call: Callable[[], object] | None) -> None:
        """Call it once the locks are released."""
        self.after.then(call)

    # Records

    def empty(self, worker: Worker) -> None:
        """Settle what the worker has put into its ring."""
        inbox = worker.inbox
        if not inbox and not worker.parts:
            done, took_ns = settle(self._dispatcher, worker.ring, worker.index, self.litter)
            self.items_done += done
            self.busy_ns += took_ns
            if worker.ring.empty():
                return
        with SHIELD:
            try:
                worker.ring.take(inbox)
            except BrokenRing:
                worker.child.kill()
            try:
                self._settle_all(worker, inbox)
            except BaseException:
                self._lose(worker, inbox)
                raise
            worker.position = 0
            inbox.clear()
            self._hand = None  # it has the result, which may be large

    def _settle_all(self, worker: Worker, inbox: list[Record]) -> None:
        while worker.position < len(inbox):
            record = inbox[worker.position]
            self._hand = None
            worker.position += 1
            task_id, item, status, took_ns, plain, flags, value = record
            if plain:
                task = self._dispatcher.finished(task_id, item, len(value))
                if task is not None:
                    self._hand = task
                    self.items_done += len(value)
                    self.busy_ns += took_ns
                    self.then(task.sink.take_plain(task, item, value, took_ns, worker.index))
            elif status == frames.LOG:  # from any thread, so also between the parts of a result
                self.logged = True
                log_sink.post(self._tasks, worker.index, value)
            elif flags & MORE:
                worker.parts.append(value)
            else:
                if worker.parts:
                    worker.parts.append(value)
                    value = b"".join(worker.parts)
                    worker.parts = []
                if flags & (frames.PACKED | frames.CLAIMS):
                    value = worker.open_cargo(flags, value)
                self._settle(worker, task_id, item, status, took_ns, value, flags)

    def _lose(self, worker: Worker, inbox: list[Record]) -> None:
        """Interrupted at a record: it is settled later if the dispatcher has not heard of it, else given up."""
        task = self._hand
        if task is None and worker.position:
            task_id, item, _, _, _, flags, _ = inbox[worker.position - 1]
            task = self._dispatcher.by_id.get(task_id)
            if task is not None and task.received <= item and task.state is TaskState.PUBLISHED and not flags & MORE:
                worker.position -= 1
                return
        if task is not None:
            self.then(task.sink.lost(task, _lost(task, task.received)))

    def _settle(
        self, worker: Worker, task_id: int, item: int, status: int, took_ns: int, data: Any, flags: int
    ) -> None:
        """Settle one record with a pickle, or with a parcel."""
        if status in (frames.OK, frames.UNPICKLABLE):
            task = self._dispatcher.finished(task_id, item)
            if task is not None:
                self._hand = task
                self.busy_ns += took_ns
                if status == frames.OK:
                    self.items_done += 1
                else:
                    self.items_failed += 1
                self.then(task.sink.take(task, item, status, data, took_ns, worker.index))
        elif status in (frames.RAISED, frames.UNDECODABLE):
            if status == frames.RAISED:
                self.busy_ns += took_ns
                orders = self._dispatcher.failed(task_id, item, again=bool(flags & frames.RETRY))
            else:
                orders = self._dispatcher.undecodable(task_id)
            for order in orders:
                if isinstance(order, Failed):
                    self._hand = order.task
                    self.items_failed += 1
                    self.then(order.task.sink.take(order.task, order.item, status, data, took_ns, worker.index))
                else:
                    self.obey(order)
        elif status == frames.READY:
            self._dispatcher.worker_ready(worker.index)
            if self._dispatcher.staff.vacancies:
                self._tasks.alarm()
        elif status == frames.RETURNED:
            for order in self._dispatcher.returned(task_id):
                self.obey(order)
        elif status == frames.LEAVING:
            worker.leaving = True
            self._dispatcher.worker_leaving(worker.index, idle=item == frames.IDLE)
        elif status == frames.INIT_FAILED:
            error, name, text = load_failure(data)
            what = f"{name}: {error}" if error is not None and str(error) else name
            worker.trouble = f"its initializer raised {what}"
            worker.cause = RemoteTraceback(text)
            if not self._dispatcher.staff.works:  # what it raises here, it would raise in each
                reason = errors.PoolBroken(f"the initializer of pool {self._workforce.name!r} raised {what}")
                reason.__cause__ = worker.cause
                self._give_up(reason)

    def _give_up(self, reason: BaseException) -> None:
        if self.reason is None:
            self.reason = reason

    # Instructions

    def obey(self, order: Instruction) -> None:
        """Do what the dispatcher says; under the engine's lock."""
        if isinstance(order, Split):
            self.owed.add(order.task)
            self.then(partial(self._split, order.task))
        elif isinstance(order, Start):
            self.start_worker(order.worker)
        elif isinstance(order, Retire):
            self._workforce.retire(order.worker)
        elif isinstance(order, Postponed):
            self._put_off(order)
        elif isinstance(order, Overdue):
            self.then(partial(self._find_out, order))
            self._tasks.alarm()

    def _put_off(self, order: Postponed) -> None:
        policy = order.task.policy
        wait_ns = None if policy is None else policy.wait_ns(order.attempt)
        if wait_ns is None:
            wait_ns = int(BACKOFF_MOST * 1e9)  # should the thread that asks be interrupted
            self.then(partial(self._ask, order))
        self._dispatcher.put_off(order.task, now_ns() + wait_ns)
        self._tasks.alarm()  # the collector looks when that is

    def _ask(self, order: Postponed) -> None:
        """Ask the user's backoff. Without locks."""
        policy = order.task.policy
        if policy is not None:
            try:
                answer: int | BaseException = now_ns() + policy.ask_ns(order.attempt)
            except Exception as error:
                answer = error
            self.answers.append((order.task, answer))
            self._tasks.alarm()

    def _take_answers(self) -> None:
        """Settle what was found out without locks: what users' backoffs have said, where initializers hang."""
        while self.found:
            self._end_start(*self.found.popleft())
        while self.answers:
            task, answer = self.answers.popleft()
            if isinstance(answer, int):
                self._dispatcher.put_off(task, answer)
            elif self._dispatcher.by_id.get(task.id) is task:
                self.fail(task, answer)
                self._tasks.alarm()  # whoever waits for it

    # Starts

    def start_worker(self, index: int) -> None:
        """Start a worker in this place."""
        try:
            self._workforce.start(index)
        except OSError as error:  # no descriptor, no memory, no process to be had
            if not self._dispatcher.staff.works:
                raise
            self._leave_vacant(self._dispatcher.staff.refuse(index), str(error))
            return
        self._dispatcher.worker_started(index)
        self._tasks.alarm()  # whoever waits for results waits on the new ring as well

    def _leave_vacant(self, order: Vacant, how: str) -> None:
        """The pool goes on with fewer workers for a while."""
        wait = min(VACANT_MOST, VACANT_LEAST * 2.0 ** min(order.beyond - 1, 64))
        self._dispatcher.staff.put_off(order.worker, now_ns() + int(wait * 1e9))
        self._tasks.alarm()  # the collector looks when that is
        if order.first:
            failed = f"{order.deaths} starts in a row have failed, the last one of worker {order.worker}: {how}"
            rest = "it goes on with fewer workers, and tries again less and less often"
            self._warn(f"pool {self._workforce.name!r}: {failed}; {rest}", order.worker)

    def _warn(self, text: str, worker: int) -> None:
        """Tell this program's handlers, whose thread is another."""
        self.then(partial(log_sink.warn, text, self._workforce.name, worker))
        self._tasks.alarm()

    def _find_out(self, order: Overdue) -> None:
        """Ask a worker that is long in its initializer where it is. Without locks."""
        self.found.append((order, self._workforce.where(order.sight.worker)))
        self._tasks.alarm()

    def _end_start(self, order: Overdue, where: str) -> None:
        """It is known where the worker is: tell, or end it."""
        sight, staff = order.sight, self._dispatcher.staff
        worker = self._workforce.workers.get(sight.worker)
        if worker is None or not staff.blames(sight):
            return
        what = f"its initializer {name_of(self._workforce.initializer)}"
        here = f"\nIt was here (most recent call first):\n{where}" if where else ""
        if not order.fatal:
            who = f"worker {sight.worker} of pool {self._workforce.name!r} (pid {worker.child.pid})"
            since = f"has not returned after {staff.notice_ns / 1e9:g} s; initializer_timeout= would bound it"
            self._warn(f"{who}: {what} {since}{here}", sight.worker)
            return
        self._kill_if_still(sight)
        if self._dispatcher.sentenced(sight):
            limit = f"{staff.limit_ns / 1e9:g} s"
            worker.trouble = f"{what} had not returned after its timeout of {limit}, and it was killed{here}"
        else:
            staff.ask_again(sight.worker)

    def _split(self, task: Task) -> None:
        try:
            task.sink.split(task)
        finally:
            self.owed.discard(task)

    # Deaths

    def bury(self, worker: Worker, goes_on: Callable[[], bool]) -> None:
        """The worker is dead: settle what it had put into its ring, then what it leaves.

        Args:
            worker: Whose process has ended.
            goes_on: Whether its place is to be filled; asked when all that it has done is settled.
        """
        if worker.buried:  # by the thread that ended the engine
            return
        while worker.inbox or not worker.ring.empty():
            before = worker.ring.used()
            self.empty(worker)
            if worker.ring.used() == before:  # broken: nothing more can be read
                break
        self._workforce.remove(worker)
        if worker.child.started and worker.child.error is None:
            self._outbox.arena.reclaim_dead(worker.child.pid)
        unbegun = tuple(self._tasks.repair(worker.index))
        sight = self._workforce.sight(worker, unbegun)
        certificate = worker.child.status
        how = certificate.describe() if certificate is not None else "died"
        flaw = "" if self._dispatcher.staff.works else self._workforce.flaw(worker)
        if flaw:
            self._give_up(errors.PoolBroken(f"pool {self._workforce.name!r} gives up: {flaw}"))
        orders = self._dispatcher.worker_died(sight, replace=not flaw and goes_on(), certificate=certificate)
        worker.buried = True
        for order in orders:
            if isinstance(order, Failed):
                self.items_failed += 1
                what = describe_item(order.task, order.item)
                who = f"worker {worker.index} of pool {self._workforce.name!r}"
                error = death_error(who, what, certificate, order)
                self.then(order.task.sink.fail(order.task, order.item, error))
            elif isinstance(order, Vacant):
                self._leave_vacant(order, worker.trouble or how)
            elif isinstance(order, Broken):
                died = f"{order.deaths} workers in a row died before they were ready"
                last = worker.trouble or f"{how}{self._workforce.advice}"
                reason = errors.PoolBroken(f"pool {self._workforce.name!r} gives up: {died}; the last: {last}")
                reason.__cause__ = worker.cause
                self._give_up(reason)
            else:
                self.obey(order)
        if self._dispatcher.staff.vacancies:
            self._tasks.alarm()  # the collector looks whether one is to be filled now
        self._tasks.kick()

    # Time

    def tick(self, *, fill: bool = False) -> int | None:
        """Do what is due: end what runs too long, go on with what has waited; returns when to look again (ns).

        Args:
            fill: Whether places are to be filled that were left vacant.
        """
        self._take_answers()
        now = now_ns()
        orders, again = self._dispatcher.tick(now, self._workforce.sights(), fill=fill)
        for order in orders:
            if isinstance(order, Interrupt):
                self._workforce.interrupt(order.sight)
            if not isinstance(order, Kill):
                self.obey(order)
                continue
            self._kill_if_still(order.sight)
            retry = now + RETRY_KILL_NS  # not dead yet, or it would not stop at once
            again = retry if again is None else min(again, retry)
        return again

    def _kill_if_still(self, sight: Sight) -> None:
        """Kill a worker for what it runs, and for nothing else: it is stopped first, and what it has put is settled.

        Its page may show a task whose result it has put already.
        """
        worker = self._workforce.hold(sight)
        if worker is None:
            return
        guilty = False
        try:
            self.empty(worker)
            self._tasks.alarm()  # whoever waits for it
            guilty = self._dispatcher.blames(sight)
        finally:
            if guilty:
                worker.child.kill()
                self._dispatcher.sentence(sight)
            else:
                worker.child.signal(signal.SIGCONT)

    def take_back(self, task: Task, *, running: bool) -> bool:
        """Drop a task that no worker has begun; if one has and `running`, that worker is killed. Whether it is dropped.

        The collector has to look again after this.
        """
        if task.ticket >= 0:
            if not self._tasks.withdraw(task.ticket):
                if not (running and self._dispatcher.doom(task)):
                    return False
                self.tick()
                return True
            self._dispatcher.withdrawn(task)
        return self._dispatcher.cancel(task)

    def drop(self, task: Task, *, running: bool) -> None:
        """Forget a task: taken back if no worker has begun it; if one has and `running`, that worker is killed soon."""
        if task.state in (TaskState.NEW, TaskState.DONE):
            return
        if task.ticket >= 0 and not self._tasks.withdraw(task.ticket) and running and self._dispatcher.doom(task):
            self._tasks.alarm()  # the collector sees to that
        else:
            self._dispatcher.drop(task)

    def stats(self, plain_bytes: int) -> Stats:
        """A snapshot.

        Args:
            plain_bytes: What was sent past the outbox.
        """
        dispatcher = self._dispatcher
        workforce = self._workforce
        return Stats(
            name=workforce.name,
            workers=len(workforce.workers),
            pids=workforce.pids(),
            workers_busy=workforce.busy(),
            tasks_pending=dispatcher.outstanding,
            items_done=self.items_done,
            items_failed=self.items_failed,
            retries=dispatcher.retries,
            workers_started=workforce.started,
            workers_died=workforce.died,
            worker_seconds=self.busy_ns / 1e9,
            worker_cpu_seconds=workforce.cpu_seconds,
            worker_peak_rss_bytes=workforce.peak_rss(),
            bytes_sent=self._outbox.sent_bytes + plain_bytes,
            bytes_received=workforce.received_bytes,
        )

    # Without results

    def fail(self, task: Task, error: BaseException) -> None:
        """Fail every item of a task that has no result."""
        self._dispatcher.drop(task)
        for item in range(task.received, task.count):
            task.received = item + 1
            self.then(task.sink.fail(task, item, error))

    def reconcile(self) -> bool:
        """After an interrupt: mend the dispatcher, fail the items whose results were lost in the interrupted hands.

        A task is in a slot, then on a page, then in a ring. Looked at in this order, one that is nowhere is over.

        Returns:
            False when there are records to be settled first: it is to be called again after that.
        """
        for task in self._dispatcher.mend():
            self.then(task.sink.lost(task, _lost(task, task.received)))
        lost = [task for task in self._dispatcher.tasks() if task.ticket >= 0 and not self._tasks.holds(task.ticket)]
        running = {sight.task for sight in self._workforce.sights()}
        if any(not ring.empty() for ring in self._workforce.rings):
            return False
        for task in lost:
            if task.id not in running:
                self.fail(task, _lost(task, task.received))
        return True


def _lost(task: Task, item: int) -> ResultLost:
    what = describe_item(task, item) if item < task.count else f"task {task.id} {task.function.name}"
    return ResultLost(f"the result of {what} was lost: its collection was interrupted")
