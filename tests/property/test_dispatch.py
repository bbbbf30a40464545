"""The dispatcher under random orders of events.

A model plays the ring and the workers, step by step as `_native/c/task_ring.h` and the worker's loop take them, and
the parent that reads and tells the dispatcher. Anything may happen between any two steps: a worker dies, is late or
leaves, a
result is read or not yet, a task is cancelled. Whatever the order:

    each item has exactly one outcome; the order of a task's outcomes is that of its items
    an item's code begins at most 1 + retries times, and never in two workers at once
    what is published is of the highest priorities, whenever something new comes
    a worker dies for an item that ran too long, or that nobody wants any more, and for no other
    when all is quiet, nothing is left
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from manycore._engine import dispatch, staff
from manycore._engine.calls import Task
from manycore._engine.dispatch import Dispatcher
from manycore._engine.orders import (
    Broken,
    Failed,
    Instruction,
    Interrupt,
    Kill,
    Postponed,
    Requeued,
    Retire,
    Sight,
    Split,
    Start,
    Vacant,
)
from manycore._engine.policy import Policy
from manycore._engine.task import NOT_PUBLISHED, Past, TaskState
from manycore._native.ring import DECODING
from tests.unit.engine.watched import Watched, promise

WORKERS = 3
SLOTS = 4
PLACES = 4  # indices of workers: sizes go up to this


@dataclass(eq=False)
class Call:
    """What was asked for: the sink of its tasks. Items are numbered from `first` on."""

    count: int
    policy: Policy | None
    outcomes: dict[int, str] = field(default_factory=dict)
    begun: Counter[int] = field(default_factory=Counter)
    cancelled: bool = False

    @property
    def retries(self) -> int:
        return 0 if self.policy is None else self.policy.retries


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
    retired: bool = False
    interrupted: list[tuple[int, int, int]] = field(default_factory=list)


class Engine(RuleBasedStateMachine):
    """The engine around the dispatcher, one small step a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatcher = Dispatcher(WORKERS)
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
                    past = order.task.past if item == order.task.received else None  # what it has begun counts
                    self.submit_task(call, first + item, 1, past)
            elif isinstance(order, Start):
                self.start_worker(order.worker)
            elif isinstance(order, Retire):
                self.pages[order.worker].retired = True
            elif isinstance(order, Postponed):
                assert order.attempt >= 1
                self.dispatcher.put_off(order.task, self.now + 1000)  # until somebody has been asked
                self.dispatcher.put_off(order.task, self.now + 7 * order.attempt)
            elif isinstance(order, Vacant):
                assert self.dispatcher.staff.count(), "nobody is left"
                self.dispatcher.staff.put_off(order.worker, self.now + 9 * order.beyond)
            elif isinstance(order, Broken):
                assert not self.dispatcher.staff.count(), "somebody is left"
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
        room = min(SLOTS, self.dispatcher.window) if self.dispatcher.ranked else SLOTS
        while len(self.ring) < room and (task := self.dispatcher.peek()) is not None:
            self.ticket += 1
            self.ring.append(task)
            self.dispatcher.published(task, self.ticket)

    def submit_task(self, call: Call, first: int, count: int, past: Past | None = None) -> None:
        task = Watched(call, None, None, count=count, chunk=count > 1, policy=call.policy)
        task.past = past
        self.where[task] = (call, first)
        if self.dispatcher.submit(task) is not None:
            taken = list(self.ring)
            self.ring.clear()
            self.dispatcher.recalled(taken)

    @precondition(lambda self: not self.broken)
    @rule(
        count=st.integers(1, 4),
        retries=st.integers(0, 3),
        times=st.sampled_from([(0, 0), (0, 0), (0, 5), (0, 50), (3, 0), (3, 9)]),
        priority=st.sampled_from([0, 0, 0, 1, 2, -1]),
        backoff=st.sampled_from([0, 0, 1]),
    )
    def submit(self, count: int, retries: int, times: tuple[int, int], priority: int, backoff: float) -> None:
        policy = None
        if retries or any(times) or priority:
            soft, hard = times
            policy = promise(retries=retries, soft=soft, timeout=hard, priority=priority, backoff=backoff)
        call = Call(count, policy)
        self.calls.append(call)
        self.submit_task(call, 0, count)
        self.pump()
        self.check_order(priority)

    def check_order(self, priority: int) -> None:
        """Something of this priority has come: nothing lower is published ahead of it while it waits."""
        waiting = [task for task in self.dispatcher.tasks() if task.state is TaskState.QUEUED]
        if any(dispatch._priority(task) == priority for task in waiting):
            assert all(dispatch._priority(task) >= priority for task in self.ring)

    @precondition(lambda self: not self.broken)
    @rule(size=st.integers(1, PLACES))
    def resize(self, size: int) -> None:
        self.obey(list(self.dispatcher.resize(size)))

    @precondition(lambda self: not self.broken)
    @rule()
    def demand(self) -> None:
        self.obey(list(self.dispatcher.demand()))

    @rule(choice=st.integers(0, 50), running=st.booleans())
    def cancel(self, choice: int, running: bool) -> None:
        if not self.where:
            return
        task = list(self.where)[choice % len(self.where)]
        received = task.received
        cancelled = False
        if task.state is TaskState.PUBLISHED:
            if task in self.ring:
                self.ring.remove(task)
                self.dispatcher.withdrawn(task)
            elif running:
                cancelled = self.dispatcher.doom(task)
            else:
                return
        if cancelled or self.dispatcher.cancel(task):
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
            self.dispatcher.worker_leaving(index, idle=bool(item))
        elif status == "ok":
            task = self.dispatcher.finished(task_id, item, count)
            if task is not None:
                for place in range(item, item + count):
                    self.settle(task, place, "ok")
        elif status == "raised":
            self.obey(self.dispatcher.failed(task_id, item, again=bool(count)), "raised")
        else:
            self.obey(self.dispatcher.undecodable(task_id), "undecodable")
        self.pump()

    @rule(index=st.integers(0, PLACES - 1), most=st.integers(1, 8))
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
        live = self.dispatcher.by_id
        orders, again = self.dispatcher.tick(self.now, sights, fill=not self.broken)
        assert (again is not None) == self.dispatcher.timed or orders or self.dispatcher.staff.vacancies
        for order in orders:
            if isinstance(order, Start):
                self.start_worker(order.worker)
                continue
            assert isinstance(order, Kill | Interrupt)
            sight = order.sight
            page = self.pages[sight.worker]
            task = live.get(sight.task)
            if isinstance(order, Interrupt):
                assert task is not None
                assert task.policy is not None
                assert 0 < task.policy.soft_ns <= self.now - sight.started_ns
                key = (sight.task, sight.item, sight.started_ns)
                assert key not in page.interrupted, "interrupted twice"
                page.interrupted.append(key)
                continue
            if task is not None:
                assert task.policy is not None
                assert 0 < task.policy.timeout_ns <= self.now - sight.started_ns
            if page.alive:
                self.dispatcher.sentence(sight)
                self.kill(sight.worker)
        self.pump()

    # the workers

    @rule(index=st.integers(0, PLACES - 1))
    def kill(self, index: int) -> None:
        page = self.pages.get(index)
        if page is not None and page.alive:
            page.alive = False
            self.dead.append((index, page))

    @rule(index=st.integers(0, PLACES - 1), turns=st.integers(1, 12), luck=st.integers(0, 11))
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
            if luck in (7, 10) or page.retired:
                page.records.append(("leaving", 0, luck == 7 and not page.retired, 0))
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
            page.records.append(("raised", page.task_id, item, page.started_ns % 3 > 0))  # worth another try
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
            assert task.state in (TaskState.QUEUED, TaskState.PUBLISHED, TaskState.WAITING)
            assert (task.state is TaskState.PUBLISHED) == (task.ticket != NOT_PUBLISHED)
        for task in self.ring:
            assert task.state is TaskState.PUBLISHED
        running = [page.task for page in self.pages.values() if page.task_id and page.step == "running" and page.alive]
        assert len(set(running)) == len(running), "a task runs in two workers"

    def teardown(self) -> None:
        """Let everything come to its end: then each item has its outcome."""
        for _ in range(10_000):
            if not (self.dispatcher.outstanding or self.dispatcher.timed or self.dead) or self.broken:
                break
            self.watch(10)
            while self.dead:
                self.bury(True)
            for index in tuple(self.pages):
                self.work(index, 8, 0)
                self.drain(index, 8)
            if not self.pages:
                self.start_worker(0)
        assert not self.dispatcher.outstanding
        assert self.broken or not self.dispatcher.timed
        assert not self.dispatcher.ranked
        for call in self.calls:
            assert sorted(call.outcomes) == list(range(call.count))
            for item, outcome in call.outcomes.items():
                if outcome in ("ok", "raised"):
                    assert call.begun[item] >= 1


Engine.TestCase.settings = settings(max_examples=100, stateful_step_count=50)
TestRandomOrders = Engine.TestCase


def test_long_random_walks(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypothesis finds the shortest way to a fault; this goes further, a thousand times as fast."""
    for number in range(400):
        monkeypatch.setattr(staff, "SPARE_STARTS", number % 4)
        walk = Engine()
        walk.start()
        for _ in range(200):
            match rng.choices(range(10), [3, 20, 8, 2, 4, 1, 0.3, 2, 0.3, 0.5])[0]:
                case 0 if not walk.broken:
                    times = rng.choice([(0, 0), (0, 0), (0, 5), (0, 50), (3, 0), (3, 9)])
                    priority = rng.choice([0, 0, 0, 1, 2, -1])
                    walk.submit(rng.randint(1, 4), rng.randint(0, 3), times, priority, rng.choice([0, 0, 1]))
                case 1:
                    walk.work(rng.randrange(PLACES), rng.choice([1, 1, 2, 6]), rng.randrange(12))
                case 2:
                    walk.drain(rng.randrange(PLACES), rng.randint(1, 3))
                case 3:
                    walk.kill(rng.randrange(PLACES))
                case 4:
                    walk.bury(rng.random() < 0.9)
                case 5:
                    walk.cancel(rng.randrange(50), rng.random() < 0.5)
                case 6:
                    walk.give_up(rng.randrange(50))
                case 7:
                    walk.watch(rng.randrange(30))
                case 8 if not walk.broken:
                    walk.resize(rng.randint(1, PLACES))
                case 9 if not walk.broken:
                    walk.demand()
            walk.states()
        walk.teardown()
