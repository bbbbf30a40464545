"""The dispatcher under random orders of events.

A model plays the ring and the workers, step by step as `_native/c/task_ring.h` and the worker's loop take them, and
the parent that reads and tells the dispatcher. Anything may happen between any two steps: a worker dies, is late or
leaves, a
result is read or not yet, a task is cancelled. Whatever the order:

    each item has exactly one outcome; the order of a task's outcomes is that of its items
    an item's code begins at most 1 + retries times, and never in two workers at once
    when all is quiet, nothing is left
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from manycore._engine import dispatch
from manycore._engine.dispatch import (
    NOT_PUBLISHED,
    Broken,
    Dispatcher,
    Failed,
    IllegalTransition,
    Instruction,
    Requeued,
    Sight,
    Split,
    Start,
    Task,
    TaskState,
    WorkerState,
)
from manycore._native.ring import DECODING

WORKERS = 3
SLOTS = 4


class Watched(Task):
    """A task whose every change of state must be a row of the table."""

    __slots__ = ("_now",)
    _now: TaskState
    seen: ClassVar[set[tuple[TaskState, TaskState]]] = set()

    @property
    def state(self) -> TaskState:
        return self._now

    @state.setter
    def state(self, state: TaskState) -> None:
        before = getattr(self, "_now", None)
        if before is not None:
            assert (before, state) in dispatch._TASK_TRANSITIONS
            self.seen.add((before, state))
        self._now = state


@dataclass(eq=False)
class Call:
    """What was asked for: the sink of its tasks. Items are numbered from `first` on."""

    count: int
    retries: int
    outcomes: dict[int, str] = field(default_factory=dict)
    begun: Counter[int] = field(default_factory=Counter)
    cancelled: bool = False


@dataclass
class Page:
    """A worker: what it shows, what it has put, and where its loop is."""

    started: bool = True
    claimed: Task | None = None  # its slot is CLAIMED
    task_id: int = 0
    task: Task | None = None
    item: int = 0
    started_ns: int = 0
    first: int = 0
    step: str = "starting"
    records: deque[tuple[Any, ...]] = field(default_factory=deque)
    alive: bool = True


class Engine(RuleBasedStateMachine):
    """The engine around the dispatcher, one small step a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatcher = Dispatcher()
        self.ring: deque[Task] = deque()  # published and not claimed
        self.ticket = 0
        self.pages: dict[int, Page] = {}
        self.dead: deque[tuple[int, Page]] = deque()
        self.calls: list[Call] = []
        self.where: dict[Task, tuple[Call, int]] = {}  # a task -> its call, the number of its first item
        self.now = 1_000
        self.broken = False

    @initialize()
    def start(self) -> None:
        for index in range(WORKERS):
            self.start_worker(index)

    def start_worker(self, index: int) -> None:
        self.dispatcher.worker_started(index)
        self.pages[index] = Page()

    # the parent

    def settle(self, task: Task, item: int, outcome: str) -> None:
        call, first = self.where[task]
        assert first + item not in call.outcomes, "a second outcome"
        call.outcomes[first + item] = outcome

    def obey(self, orders: list[Instruction], outcome: str = "") -> None:
        for order in orders:
            if isinstance(order, Failed):
                self.settle(order.task, order.item, outcome or ("timeout" if order.timeout else "died"))
            elif isinstance(order, Split):
                call, first = self.where[order.task]
                for item in range(order.task.received, order.task.count):
                    tries = order.task.tries if item == order.task.received else 0  # what it has begun counts
                    self.submit_task(call, first + item, 1, order.task.timeout_ns, tries)
            elif isinstance(order, Start):
                self.start_worker(order.worker)
            elif isinstance(order, Broken):
                self.broken = True
                for task in self.dispatcher.tasks():
                    self.dispatcher.drop(task)
                    for item in range(task.received, task.count):
                        self.settle(task, item, "broken")
                self.ring.clear()
            else:
                assert isinstance(order, Requeued)
        self.pump()

    def pump(self) -> None:
        while len(self.ring) < SLOTS and (task := self.dispatcher.peek()) is not None:
            self.ticket += 1
            self.ring.append(task)
            self.dispatcher.published(task, self.ticket)

    def submit_task(self, call: Call, first: int, count: int, timeout_ns: int, tries: int = 0) -> None:
        task = Watched(call, None, None, count=count, chunk=count > 1, retries=call.retries, timeout_ns=timeout_ns)
        task.tries = tries
        self.where[task] = (call, first)
        self.dispatcher.submit(task)

    @precondition(lambda self: not self.broken)
    @rule(count=st.integers(1, 4), retries=st.integers(0, 2), timeout=st.sampled_from([0, 0, 5, 50]))
    def submit(self, count: int, retries: int, timeout: int) -> None:
        call = Call(count, retries)
        self.calls.append(call)
        self.submit_task(call, 0, count, timeout)
        self.pump()

    @rule(choice=st.integers(0, 50))
    def cancel(self, choice: int) -> None:
        if not self.where:
            return
        task = list(self.where)[choice % len(self.where)]
        if task.state is TaskState.PUBLISHED:
            if task not in self.ring:
                return
            self.ring.remove(task)
            self.dispatcher.withdrawn(task)
        received = task.received
        if self.dispatcher.cancel(task):
            for item in range(received, task.count):
                self.settle(task, item, "cancelled")
        self.pump()

    @rule(choice=st.integers(0, 50))
    def give_up(self, choice: int) -> None:
        """An abandoned map: nothing is to be heard of the task, wherever it is."""
        tasks = self.dispatcher.tasks()
        if tasks:
            task = tasks[choice % len(tasks)]
            if task in self.ring:
                self.ring.remove(task)
            received = task.received
            self.dispatcher.drop(task)
            for item in range(received, task.count):
                self.settle(task, item, "dropped")

    def read(self, index: int, page: Page) -> None:
        """One record of a worker."""
        status, task_id, item, count = page.records.popleft()
        if status == "ready":
            self.dispatcher.worker_ready(index)
        elif status == "leaving":
            self.dispatcher.worker_leaving(index)
        elif status == "ok":
            task = self.dispatcher.finished(task_id, item, count)
            if task is not None:
                for place in range(item, item + count):
                    self.settle(task, place, "ok")
        elif status == "raised":
            self.obey(self.dispatcher.failed(task_id, item), "raised")
        else:
            self.obey(self.dispatcher.undecodable(task_id), "undecodable")
        self.pump()

    @rule(index=st.integers(0, WORKERS - 1), most=st.integers(1, 8))
    def drain(self, index: int, most: int) -> None:
        page = self.pages.get(index)
        while page is not None and page.records and most:
            self.read(index, page)
            most -= 1

    @rule(replace=st.sampled_from([True, True, True, False]))
    def bury(self, replace: bool) -> None:
        """All that the dead worker had put is read, then its slots, then its page."""
        if not self.dead:
            return
        index, page = self.dead.popleft()
        while page.records:
            self.read(index, page)
        unbegun = (page.claimed.id,) if page.claimed is not None and page.claimed.id else ()
        sight = Sight(index, unbegun, page.task_id, page.item, page.started_ns)
        known = dict(self.where)
        del self.pages[index]
        self.obey(self.dispatcher.worker_died(sight, replace=not self.broken and (replace or len(self.pages) == 0)))
        assert set(known) <= set(self.where)

    @rule(passed=st.integers(0, 60))
    def watch(self, passed: int) -> None:
        self.now += passed
        sights = [Sight(i, (), page.task_id, page.item, page.started_ns) for i, page in self.pages.items()]
        kills, again = self.dispatcher.overdue(self.now, sights)
        assert (again is None) == (not self.dispatcher.timed)
        for kill in kills:
            page = self.pages[kill.sight.worker]
            if page.alive:
                self.dispatcher.sentence(kill.sight)
                self.kill(kill.sight.worker)

    # the workers

    @rule(index=st.integers(0, WORKERS - 1))
    def kill(self, index: int) -> None:
        page = self.pages.get(index)
        if page is not None and page.alive:
            page.alive = False
            self.dead.append((index, page))

    @rule(index=st.integers(0, WORKERS - 1), turns=st.integers(1, 12), luck=st.integers(0, 11))
    def work(self, index: int, turns: int, luck: int) -> None:
        for _ in range(turns):
            page = self.pages.get(index)
            if page is None or not page.alive:
                return
            self.step(index, page, luck)

    def step(self, index: int, page: Page, luck: int) -> None:
        if page.step == "starting":
            if luck == 11:
                self.kill(index)
                return
            page.records.append(("ready", 0, 0, 0))
            page.step = "idle"
        elif page.step == "idle":
            if luck == 10:
                page.records.append(("leaving", 0, 0, 0))
                self.kill(index)
            elif self.ring:
                page.claimed = page.task = self.ring.popleft()
                page.first = page.claimed.received
                page.step = "claimed"
        elif page.step == "claimed":  # the page says so before the slot is free
            assert page.task is not None
            page.item, page.started_ns, page.task_id = DECODING, self.now, page.task.id
            page.step = "copied"
        elif page.step == "copied":
            page.claimed = None
            page.step = "decoding"
        elif page.step == "decoding":
            assert page.task is not None
            if luck == 9:
                page.records.append(("undecodable", page.task_id, page.first, 0))
                page.step = "over"
            else:
                self.begin(page, page.first)
                page.step = "running"
        elif page.step == "running":
            self.end_item(page, luck)
        elif page.step == "over":
            page.task_id, page.task = 0, None
            page.step = "idle"

    def begin(self, page: Page, item: int) -> None:
        assert page.task is not None
        page.item, page.started_ns = item, self.now
        if item < page.task.count:
            call, first = self.where[page.task]
            call.begun[first + item] += 1
            assert call.begun[first + item] <= 1 + call.retries, "began too often"

    def end_item(self, page: Page, luck: int) -> None:
        assert page.task is not None
        item = page.item
        if luck == 8:
            page.records.append(("raised", page.task_id, item, 0))
            if page.task.count > 1:
                page.item = item + 1
        else:
            page.item = item + 1  # the page first, as the loop does
            page.records.append(("ok", page.task_id, item, 1))
        if item + 1 >= page.task.count or page.task.count == 1:
            page.step = "over"
        else:
            self.begin(page, item + 1)

    # what holds

    @invariant()
    def states(self) -> None:
        tasks = self.dispatcher.tasks()
        for task in tasks:
            assert 0 <= task.received < task.count
            assert task.state in (TaskState.QUEUED, TaskState.PUBLISHED)
            assert (task.state is TaskState.QUEUED) == (task.ticket == NOT_PUBLISHED)
        for task in self.ring:
            assert task.state is TaskState.PUBLISHED
        running = [page.task for page in self.pages.values() if page.task_id and page.step == "running" and page.alive]
        assert len(set(running)) == len(running), "a task runs in two workers"

    def teardown(self) -> None:
        """Let everything come to its end: then each item has its outcome."""
        for _ in range(10_000):
            if not self.dispatcher.outstanding or self.broken:
                break
            while self.dead:
                self.bury(True)
            for index in tuple(self.pages):
                self.work(index, 8, 0)
                self.drain(index, 8)
            if not self.pages:
                self.start_worker(0)
        assert not self.dispatcher.outstanding
        assert not self.dispatcher.timed
        for call in self.calls:
            assert sorted(call.outcomes) == list(range(call.count))
            for item, outcome in call.outcomes.items():
                if outcome in ("ok", "raised"):
                    assert call.begun[item] >= 1


Engine.TestCase.settings = settings(max_examples=100, stateful_step_count=50)
TestRandomOrders = Engine.TestCase


def test_long_random_walks(rng: random.Random) -> None:
    """Hypothesis finds the shortest way to a fault; this goes further, a thousand times as fast."""
    for _ in range(400):
        walk = Engine()
        walk.start()
        for _ in range(200):
            match rng.choices(range(8), [3, 20, 8, 2, 4, 1, 0.3, 2])[0]:
                case 0 if not walk.broken:
                    walk.submit(rng.randint(1, 4), rng.randint(0, 2), rng.choice([0, 0, 5, 50]))
                case 1:
                    walk.work(rng.randrange(WORKERS), rng.choice([1, 1, 2, 6]), rng.randrange(12))
                case 2:
                    walk.drain(rng.randrange(WORKERS), rng.randint(1, 3))
                case 3:
                    walk.kill(rng.randrange(WORKERS))
                case 4:
                    walk.bury(rng.random() < 0.9)
                case 5:
                    walk.cancel(rng.randrange(50))
                case 6:
                    walk.give_up(rng.randrange(50))
                case 7:
                    walk.watch(rng.randrange(30))
            walk.states()
        walk.teardown()


# ------------------------------------------------------------------------------------------- the tables


class WatchedWorker(dispatch._Worker):
    __slots__ = ("_now",)
    _now: WorkerState
    seen: ClassVar[set[tuple[WorkerState, WorkerState]]] = set()

    @property
    def state(self) -> WorkerState:
        return self._now

    @state.setter
    def state(self, state: WorkerState) -> None:
        before = getattr(self, "_now", None)
        if before is not None:
            self.seen.add((before, state))
        self._now = state


def published(dispatcher: Dispatcher, **options: Any) -> Task:
    task = Watched(None, None, None, **options)
    dispatcher.submit(task)
    assert dispatcher.peek() is task
    dispatcher.published(task, task.id)
    return task


def test_every_row_of_the_tables_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watched, "seen", set())
    monkeypatch.setattr(WatchedWorker, "seen", set())
    monkeypatch.setattr(dispatch, "_Worker", WatchedWorker)
    dispatcher = Dispatcher()
    for index in range(3):
        dispatcher.worker_started(index)
    dispatcher.worker_ready(0)
    dispatcher.worker_ready(1)
    dispatcher.worker_leaving(1)
    dispatcher.worker_leaving(2)
    assert dispatcher.workers == {0: WorkerState.READY, 1: WorkerState.LEAVING, 2: WorkerState.LEAVING}

    task = published(dispatcher)
    assert dispatcher.finished(task.id, 0) is task  # PUBLISHED -> DONE
    task = published(dispatcher)
    dispatcher.withdrawn(task)  # PUBLISHED -> QUEUED
    assert dispatcher.cancel(task)  # QUEUED -> DONE
    assert dispatcher.outstanding == 0

    assert Watched.seen == set(dispatch._TASK_TRANSITIONS)
    assert WatchedWorker.seen == set(dispatch._WORKER_TRANSITIONS)


def illegal_events() -> dict[str, Any]:
    def twice(d: Dispatcher) -> None:
        d.submit(published(d))

    def unpublished(d: Dispatcher) -> None:
        task = Watched(None, None, None)
        d.submit(task)
        d.finished(task.id, 0)

    def wrong_item(d: Dispatcher) -> None:
        d.finished(published(d, count=3).id, 1)

    def too_many(d: Dispatcher) -> None:
        d.finished(published(d, count=3).id, 0, 4)

    def failed_later(d: Dispatcher) -> None:
        d.failed(published(d, count=3).id, 2)

    def published_twice(d: Dispatcher) -> None:
        d.published(published(d), 7)

    def same_place(d: Dispatcher) -> None:
        d.worker_started(0)
        d.worker_started(0)

    def ready_again(d: Dispatcher) -> None:
        d.worker_started(0)
        d.worker_leaving(0)
        d.worker_ready(0)

    events = (twice, unpublished, wrong_item, too_many, failed_later, published_twice, same_place, ready_again)
    return {event.__name__: event for event in events}


@pytest.mark.parametrize("event", illegal_events().values(), ids=illegal_events().keys())
def test_what_cannot_follow_is_refused(event: Any) -> None:
    with pytest.raises(IllegalTransition):
        event(Dispatcher())


# -------------------------------------------------------------------------------- a death, row by row


@pytest.mark.parametrize(
    ("count", "received", "item", "retries", "expected", "left_at"),
    [
        (1, 0, DECODING, 0, [Failed], None),
        (1, 0, DECODING, 1, [Requeued], 0),
        (1, 0, 0, 0, [Failed], None),
        (1, 0, 0, 1, [Requeued], 0),
        (4, 0, DECODING, 0, [Split], None),
        (4, 2, DECODING, 0, [Split], None),
        (4, 2, 2, 0, [Failed, Requeued], 3),
        (4, 2, 2, 1, [Requeued], 2),
        (4, 2, 3, 0, [Failed, Requeued], 3),  # it had begun the next one before the result was out
        (4, 2, 1, 0, [Requeued], 2),  # between two items
        (4, 3, 3, 0, [Failed], None),
        (4, 3, 4, 0, [Failed], None),
    ],
)
def test_who_pays_for_a_death(
    count: int, received: int, item: int, retries: int, expected: list[type], left_at: int | None
) -> None:
    dispatcher = Dispatcher()
    dispatcher.worker_started(0)
    dispatcher.worker_ready(0)
    task = published(dispatcher, count=count, retries=retries)
    if received:
        dispatcher.finished(task.id, 0, received)
    orders = dispatcher.worker_died(Sight(0, (), task.id, item, 0), replace=True)
    assert [type(order) for order in orders] == [*expected, Start]
    for order in orders:
        if isinstance(order, Failed):
            assert order.item == received
    if left_at is None:
        assert task.state is TaskState.DONE
        assert dispatcher.outstanding == 0
    else:
        assert task.state is TaskState.QUEUED
        assert task.received == left_at
        assert dispatcher.peek() is task


def test_a_claim_that_never_began_is_published_again_before_all_others() -> None:
    dispatcher = Dispatcher()
    dispatcher.worker_started(0)
    first = published(dispatcher)
    later = Watched(None, None, None)
    dispatcher.submit(later)
    orders = dispatcher.worker_died(Sight(0, (first.id,), first.id, DECODING, 0), replace=False)
    assert orders == [Requeued(first)]
    assert dispatcher.peek() is first


def test_the_restart_budget_counts_only_those_that_never_got_ready() -> None:
    dispatcher = Dispatcher()
    for index in range(2):
        dispatcher.worker_started(index)
    dispatcher.worker_ready(1)
    starts = 0
    while True:
        order = dispatcher.worker_died(Sight(0), replace=True)[-1]
        if isinstance(order, Broken):
            break
        dispatcher.worker_started(0)
        starts += 1
        if starts == 2:  # one that gets ready wipes the slate
            dispatcher.worker_ready(0)
    assert order.deaths == dispatch.SPARE_STARTS + 2
    assert starts == 2 + 1 + dispatch.SPARE_STARTS + 1


def test_deadlines_are_asked_for_again_in_time() -> None:
    dispatcher = Dispatcher()
    dispatcher.worker_started(0)
    dispatcher.worker_ready(0)
    assert dispatcher.overdue(100, []) == ([], None)
    task = published(dispatcher, timeout_ns=50)
    running = Sight(0, (), task.id, 0, 80)
    assert dispatcher.overdue(100, [running]) == ([], 130)
    assert dispatcher.overdue(100, []) == ([], 150)
    kills, _ = dispatcher.overdue(130, [running])
    assert [kill.sight for kill in kills] == [running]
    dispatcher.sentence(running)
    failed = dispatcher.worker_died(running, replace=False)
    assert failed == [Failed(task, 0, timeout=True)]
    assert dispatcher.overdue(131, []) == ([], None)


def test_a_page_that_is_not_cleared_yet_costs_a_retry_nothing() -> None:
    dispatcher = Dispatcher()
    for index in range(2):
        dispatcher.worker_started(index)
        dispatcher.worker_ready(index)
    task = published(dispatcher, retries=1)
    page = Sight(0, (), task.id, 0, 0)
    assert dispatcher.failed(task.id, 0) == [Requeued(task)]
    dispatcher.published(task, 9)  # and worker 1 has it
    assert dispatcher.worker_died(page, replace=False) == []
    assert dispatcher.finished(task.id, 0) is task
