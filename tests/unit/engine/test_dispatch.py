"""The dispatcher, row by row: the tables of legal moves, who pays for a death, what each promise of a policy means."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from typing import Any, ClassVar

import pytest

from manycore._engine import staff
from manycore._engine.calls import Task
from manycore._engine.dispatch import Dispatcher, IllegalTransition, WorkerState
from manycore._engine.frames import INITIALIZING
from manycore._engine.orders import (
    Broken,
    Failed,
    Instruction,
    Interrupt,
    Kill,
    Overdue,
    Postponed,
    Recall,
    Requeued,
    Retire,
    Sight,
    Split,
    Start,
    Vacant,
)
from manycore._engine.policy import Policy
from manycore._engine.task import TASK_TRANSITIONS, TaskState
from manycore._native.ring import DECODING
from manycore.errors import WorkerDied
from tests.unit.engine.watched import Watched, promise


class WatchedWorker(staff.Worker):
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
    monkeypatch.setattr(staff, "Worker", WatchedWorker)
    dispatcher = Dispatcher(5)
    for index in range(5):
        dispatcher.worker_started(index)
    for index in (0, 1, 3):
        dispatcher.worker_ready(index)
    dispatcher.worker_leaving(1)
    dispatcher.worker_leaving(2)
    assert dispatcher.resize(3) == [Retire(3), Retire(4)]
    dispatcher.worker_ready(4)  # it was about to be, and leaves all the same
    dispatcher.worker_leaving(4)
    leaving = WorkerState.LEAVING
    expected = {0: WorkerState.READY, 1: leaving, 2: leaving, 3: WorkerState.RETIRED, 4: leaving}
    assert dispatcher.workers == expected

    task = published(dispatcher)
    assert dispatcher.finished(task.id, 0) is task  # PUBLISHED -> DONE
    task = published(dispatcher)
    dispatcher.withdrawn(task)  # PUBLISHED -> QUEUED
    assert dispatcher.cancel(task)  # QUEUED -> DONE
    policy = promise(retries=2, backoff=1)
    for again in (False, True):
        task = published(dispatcher, policy=policy)
        assert dispatcher.failed(task.id, 0, again=True) == [Postponed(task, 1)]  # PUBLISHED -> WAITING
        if again:
            dispatcher.put_off(task, 10)
            assert dispatcher.tick(9, []) == ([], 10)
            assert dispatcher.tick(10, []) == ([], None)  # WAITING -> QUEUED
        assert dispatcher.cancel(task)  # WAITING -> DONE
    assert dispatcher.outstanding == 0

    assert Watched.seen == set(TASK_TRANSITIONS)
    assert WatchedWorker.seen == set(staff.WORKER_TRANSITIONS)


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
    task = published(dispatcher, count=count, policy=promise(retries=retries))
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
    dispatcher.worker_started(0)
    starts = 0
    while True:
        order = dispatcher.worker_died(Sight(0), replace=True)[-1]
        if isinstance(order, Broken):
            break
        dispatcher.worker_started(0)
        starts += 1
        if starts == 2:  # one that gets ready wipes the slate
            dispatcher.worker_ready(0)
    assert order.deaths == staff.SPARE_STARTS + 1
    assert starts == 2 + 1 + staff.SPARE_STARTS


def failed_starts(dispatcher: Dispatcher, index: int) -> Instruction:
    """Starts in this place fail until something else becomes of it than another one."""
    while True:
        order = dispatcher.worker_died(Sight(index), replace=True)[-1]
        if order != Start(index):
            return order
        dispatcher.worker_started(index)


def test_as_long_as_somebody_works_starts_that_fail_end_nothing() -> None:
    dispatcher = Dispatcher(3)
    for index in range(3):
        dispatcher.worker_started(index)
    dispatcher.worker_ready(0)
    many = staff.SPARE_STARTS + 3
    assert failed_starts(dispatcher, 1) == Vacant(1, many, 1, first=True)
    assert dispatcher.tick(10, []) == ([], None)  # it is not said yet until when
    dispatcher.staff.put_off(1, 50)
    assert dispatcher.worker_died(Sight(2), replace=True) == [Vacant(2, many + 1, 3, first=False)]
    dispatcher.staff.put_off(2, 90)
    assert not dispatcher.vacant
    assert dispatcher.demand() == []
    assert dispatcher.tick(10, []) == ([], 50)
    assert dispatcher.tick(50, [], fill=False) == ([], None)  # the pool is ending
    assert dispatcher.tick(50, []) == ([Start(1)], 90)
    dispatcher.worker_started(1)
    assert dispatcher.worker_died(Sight(1), replace=True) == [Vacant(1, many + 2, 4, first=False)]
    dispatcher.staff.put_off(1, 200)
    assert dispatcher.tick(90, []) == ([Start(2)], 200)
    dispatcher.worker_started(2)
    dispatcher.worker_ready(2)  # the slate is wiped
    assert dispatcher.tick(200, []) == ([Start(1)], None)
    dispatcher.worker_started(1)
    assert dispatcher.worker_died(Sight(1), replace=True) == [Start(1)]


def test_who_is_still_starting_decides_whether_the_pool_gives_up() -> None:
    dispatcher = Dispatcher(2)
    dispatcher.worker_started(0)
    dispatcher.worker_started(1)
    order = failed_starts(dispatcher, 1)
    assert order == Vacant(1, staff.SPARE_STARTS + 2, 1, first=False)
    dispatcher.staff.put_off(1, 50)
    assert dispatcher.tick(60, []) == ([], None)  # it waits for what becomes of the other
    assert dispatcher.worker_died(Sight(0), replace=True) == [Broken(staff.SPARE_STARTS + 3)]


def test_a_vacant_place_is_filled_when_the_others_have_left() -> None:
    dispatcher = Dispatcher(2)
    dispatcher.worker_started(0)
    dispatcher.worker_started(1)
    dispatcher.worker_ready(1)
    assert isinstance(failed_starts(dispatcher, 0), Vacant)
    dispatcher.staff.put_off(0, 50)
    assert dispatcher.resize(1) == [Retire(1)]
    assert dispatcher.worker_died(Sight(1), replace=True) == []
    assert dispatcher.tick(50, []) == ([Start(0)], None)


def test_no_process_can_be_had_while_somebody_works() -> None:
    dispatcher = Dispatcher(2)
    dispatcher.worker_started(0)
    dispatcher.worker_ready(0)
    assert dispatcher.staff.refuse(1) == Vacant(1, 1, 1, first=True)
    dispatcher.staff.put_off(1, 50)
    assert dispatcher.tick(50, []) == ([Start(1)], None)
    assert dispatcher.staff.refuse(1) == Vacant(1, 2, 1, first=False)


@pytest.mark.parametrize("fatal", [True, False])
def test_an_initializer_that_takes_long(fatal: bool) -> None:
    dispatcher = Dispatcher(2, limit_ns=50 if fatal else 0, notice_ns=0 if fatal else 50)
    dispatcher.worker_started(0)
    dispatcher.worker_started(1)
    dispatcher.worker_ready(1)
    begun = Sight(0, (), 0, INITIALIZING, 80)
    others = Sight(1, (), 0, INITIALIZING, 10)  # what its page shows until its first task
    assert dispatcher.tick(70, [Sight(0), others]) == ([], 120)  # not in its initializer yet
    assert dispatcher.tick(120, [begun, others]) == ([], 130)
    assert dispatcher.tick(130, [begun, others]) == ([Overdue(begun, fatal)], None)
    assert dispatcher.tick(140, [begun, others]) == ([], None)  # it is being looked at
    assert dispatcher.blames(begun)
    dispatcher.staff.ask_again(0)
    assert dispatcher.tick(150, [begun, others]) == ([Overdue(begun, fatal)], None)
    assert not dispatcher.sentenced(begun)
    dispatcher.sentence(begun)
    assert dispatcher.sentenced(begun)
    dispatcher.worker_ready(0)
    assert not dispatcher.blames(begun)
    assert dispatcher.tick(150, [begun, others]) == ([], None)


def test_deadlines_are_asked_for_again_in_time() -> None:
    dispatcher = Dispatcher()
    dispatcher.worker_started(0)
    dispatcher.worker_ready(0)
    assert dispatcher.tick(100, []) == ([], None)
    task = published(dispatcher, policy=promise(timeout=50))
    running = Sight(0, (), task.id, 0, 80)
    assert dispatcher.tick(100, [running]) == ([], 130)
    assert dispatcher.tick(100, []) == ([], 150)
    assert dispatcher.tick(130, [running])[0] == [Kill(running)]
    dispatcher.sentence(running)
    failed = dispatcher.worker_died(running, replace=False)
    assert failed == [Failed(task, 0, timeout=True)]
    assert dispatcher.tick(131, []) == ([], None)


def test_a_page_that_is_not_cleared_yet_costs_a_retry_nothing() -> None:
    dispatcher = Dispatcher()
    for index in range(2):
        dispatcher.worker_started(index)
        dispatcher.worker_ready(index)
    task = published(dispatcher, policy=promise(retries=1))
    page = Sight(0, (), task.id, 0, 0)
    assert dispatcher.failed(task.id, 0, again=True) == [Requeued(task)]
    dispatcher.published(task, 9)  # and worker 1 has it
    assert dispatcher.worker_died(page, replace=False) == []
    assert dispatcher.finished(task.id, 0) is task


# ------------------------------------------------------------------------------- policies, row by row


def test_a_soft_timeout_comes_once_and_before_the_hard_one() -> None:
    dispatcher = Dispatcher()
    dispatcher.worker_started(0)
    dispatcher.worker_ready(0)
    task = published(dispatcher, policy=promise(soft=20, timeout=50))
    running = Sight(0, (), task.id, 0, 100)
    assert dispatcher.tick(100, [running]) == ([], 120)
    assert dispatcher.tick(120, [running])[0] == [Interrupt(running)]
    orders, again = dispatcher.tick(121, [running])
    assert orders == []
    assert again == 141  # nothing else may come before a task of this policy that begins now has run for 20
    assert dispatcher.tick(150, [running])[0] == [Kill(running)]


def test_arguments_that_are_slow_to_rebuild_hear_of_no_soft_timeout() -> None:
    dispatcher = Dispatcher()
    dispatcher.worker_started(0)
    task = published(dispatcher, policy=promise(soft=20, timeout=50))
    decoding = Sight(0, (), task.id, DECODING, 100)
    assert dispatcher.tick(140, [decoding])[0] == []
    assert dispatcher.tick(150, [decoding])[0] == [Kill(decoding)]


def die_of(dispatcher: Dispatcher, task: Task, certificate: str) -> list[Instruction]:
    """Worker 0 takes the task and dies of it."""
    if task.state is TaskState.QUEUED:
        dispatcher.published(task, 7)
    orders = dispatcher.worker_died(Sight(0, (), task.id, 0, 0), replace=True, certificate=certificate)
    dispatcher.worker_started(0)
    dispatcher.worker_ready(0)
    return orders


@pytest.mark.parametrize(
    ("retries", "retry_on", "deaths"),
    [
        (0, Exception, 1),
        (1, Exception, 2),
        (5, Exception, 2),  # poison, whatever is left
        (5, WorkerDied, 6),  # unless this is what was asked for
        (5, (ValueError, BrokenProcessPool), 6),
        (5, ValueError, 1),
    ],
)
def test_who_kills_again_is_poison(retries: int, retry_on: Any, deaths: int) -> None:
    dispatcher = Dispatcher()
    dispatcher.worker_started(0)
    dispatcher.worker_ready(0)
    task = published(dispatcher, policy=Policy(retries=retries, retry_on=retry_on))
    for death in range(1, deaths):
        assert die_of(dispatcher, task, f"c{death}") == [Requeued(task), Start(0)]
    certificates = tuple(f"c{death}" for death in range(1, deaths + 1)) if retries else ()
    assert die_of(dispatcher, task, f"c{deaths}") == [Failed(task, 0, False, certificates), Start(0)]
    assert dispatcher.outstanding == 0


def test_a_timeout_is_retried_and_is_no_death() -> None:
    for retry_on, tries in ((Exception, 3), (TimeoutError, 3), (WorkerDied, 1)):
        dispatcher = Dispatcher()
        dispatcher.worker_started(0)
        dispatcher.worker_ready(0)
        policy = Policy(retries=2, retry_on=retry_on, timeout=1)
        task = published(dispatcher, policy=policy)
        for _ in range(tries - 1):
            dispatcher.sentence(Sight(0, (), task.id, 0, 0))
            assert die_of(dispatcher, task, "killed") == [Requeued(task), Start(0)]
            dispatcher.published(task, 7)
        dispatcher.sentence(Sight(0, (), task.id, 0, 0))
        assert die_of(dispatcher, task, "killed") == [Failed(task, 0, True), Start(0)]


def test_what_its_exception_does_not_ask_for_is_not_retried() -> None:
    dispatcher = Dispatcher()
    task = published(dispatcher, policy=promise(retries=3))
    assert dispatcher.failed(task.id, 0, again=False) == [Failed(task, 0)]


def test_priorities() -> None:
    dispatcher = Dispatcher(1)
    plain = [Watched(None, None, None) for _ in range(3)]
    for task in plain:
        assert dispatcher.submit(task) is None
        dispatcher.published(task, 1)
    low, high = (Watched(None, None, None, policy=promise(priority=priority)) for priority in (-1, 1))
    assert dispatcher.submit(low) is None  # nothing lower is in its way
    assert isinstance(dispatcher.submit(high), Recall)
    dispatcher.recalled(plain[1:])  # the first one is claimed already
    later = Watched(None, None, None)
    assert dispatcher.submit(later) is None
    order = []
    while (following := dispatcher.peek()) is not None:
        dispatcher.published(following, 1)
        order.append(following)
    assert order == [high, plain[1], plain[2], later, low]
    assert isinstance(dispatcher.submit(Watched(None, None, None)), Recall)  # the low one is published
    for left in dispatcher.tasks():
        dispatcher.drop(left)
    assert not dispatcher.ranked
    assert dispatcher.submit(Watched(None, None, None)) is None


def test_a_doomed_task_is_killed_wherever_it_is() -> None:
    dispatcher = Dispatcher()
    dispatcher.worker_started(0)
    dispatcher.worker_ready(0)
    task = published(dispatcher, count=3)
    assert dispatcher.doom(task)
    assert dispatcher.outstanding == 0
    orders, again = dispatcher.tick(100, [Sight(0)])  # claimed, and on no page yet
    assert orders == []
    assert again is not None
    for item in (DECODING, 0, 2):
        sight = Sight(0, (), task.id, item, 90)
        assert dispatcher.tick(100, [sight])[0] == [Kill(sight)]
    assert dispatcher.finished(task.id, 0, 2) is None
    assert dispatcher.timed
    assert dispatcher.finished(task.id, 2) is None  # it was faster
    assert not dispatcher.timed
    for end in ("died", "unbegun", "returned", "undecodable", "raised"):
        task = published(dispatcher)
        assert dispatcher.doom(task)
        match end:
            case "died":
                assert dispatcher.worker_died(Sight(0, (), task.id, 0, 0), replace=True) == [Start(0)]
            case "unbegun":
                dispatcher.worker_started(0)
                dispatcher.worker_ready(0)
                assert dispatcher.worker_died(Sight(0, (task.id,)), replace=True) == [Start(0)]
            case "returned":
                assert dispatcher.returned(task.id) == []
            case "undecodable":
                assert dispatcher.undecodable(task.id) == []
            case "raised":
                assert dispatcher.failed(task.id, 0, again=True) == []
        assert not dispatcher.timed
    queued = Watched(None, None, None)
    dispatcher.submit(queued)
    assert not dispatcher.doom(queued)


def test_those_who_left_for_want_of_work_come_back_with_it() -> None:
    dispatcher = Dispatcher(3)
    for index in range(3):
        dispatcher.worker_started(index)
        dispatcher.worker_ready(index)
        dispatcher.worker_leaving(index, idle=True)
    assert dispatcher.worker_died(Sight(0), replace=True) == []
    assert dispatcher.vacant
    assert dispatcher.demand() == []
    published(dispatcher)
    assert dispatcher.worker_died(Sight(1), replace=True) == [Start(0)]  # it left without having seen that
    dispatcher.worker_started(0)
    assert dispatcher.demand() == []
    published(dispatcher)
    published(dispatcher)
    assert dispatcher.demand() == [Start(1)]  # worker 2 is not gone yet
    dispatcher.worker_started(1)
    assert dispatcher.worker_died(Sight(2), replace=True) == [Start(2)]


def test_sizes() -> None:
    dispatcher = Dispatcher(2)
    for index in range(2):
        dispatcher.worker_started(index)
        dispatcher.worker_ready(index)
    assert dispatcher.resize(4) == [Start(2), Start(3)]
    for index in (2, 3):
        dispatcher.worker_started(index)
        dispatcher.worker_ready(index)
    assert dispatcher.resize(1) == [Retire(1), Retire(2), Retire(3)]
    assert dispatcher.resize(1) == []
    dispatcher.worker_leaving(3)
    assert dispatcher.worker_died(Sight(3), replace=True) == []
    assert dispatcher.resize(3) == []  # both are still there, and leave
    assert dispatcher.worker_died(Sight(2), replace=True) == [Start(2)]  # and their places are filled again
    dispatcher.worker_leaving(1)
    assert dispatcher.worker_died(Sight(1), replace=True) == [Start(1)]
