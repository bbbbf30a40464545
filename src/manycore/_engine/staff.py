"""The dispatcher's workers: where each of them is, and what becomes of those that do not get ready.

    started -> STARTING -> READY -> RETIRED, LEAVING -> died
                  |
                  +-> died                     a failed start: at once again, as far as the budget goes; then
                        others are there         the place is VACANT for a while, longer each time
                        nobody is                the pool gives up

A crash in the bootstrap is a fault of the machine or of the installation, which another start may not mend. As long as
somebody works, that is no reason to end what works: the pool goes on with fewer workers.

Invariants:
    a place is taken (in `workers`), vacant (in `vacancies`), or empty because there was nothing to do
    a vacant place waits while all that are there are still starting: they decide whether the pool gives up
If a process dies: `Dispatcher.worker_died` asks `fail`, where it was not ready.
Source: the restart budget is Erlang's.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from manycore._engine.frames import INITIALIZING
from manycore._engine.orders import Broken, Overdue, Start, Vacant

if TYPE_CHECKING:
    from collections.abc import Iterable

    from manycore._engine.orders import Sight

__all__ = ["IllegalTransition", "Staff", "Worker", "WorkerState"]

# Workers in a row that may die before they are ready, beyond one for each place of the pool, without a pause.
SPARE_STARTS: Final = 3

# What a vacancy's end is, until the engine has said when it is (ns).
_UNKNOWN: Final = 1 << 64


class WorkerState(Enum):
    """Where a worker is."""

    STARTING = "starting"
    READY = "ready"
    RETIRED = "retired"
    LEAVING = "leaving"


WORKER_TRANSITIONS: Final = {
    (WorkerState.STARTING, WorkerState.READY): "worker_ready",
    (WorkerState.STARTING, WorkerState.RETIRED): "the pool has become smaller",
    (WorkerState.STARTING, WorkerState.LEAVING): "told to stop before it was ready",
    (WorkerState.READY, WorkerState.RETIRED): "the pool has become smaller",
    (WorkerState.READY, WorkerState.LEAVING): "worker_leaving",
    (WorkerState.RETIRED, WorkerState.LEAVING): "worker_leaving",
}


class IllegalTransition(AssertionError):
    """An event that cannot follow what happened before: a bug of the engine."""


class Worker:
    """One worker.

    Attributes:
        state: Where it is.
        ready: Whether its initializer is done.
        asked: It is known to be long in its initializer, and somebody looks where.
        idle: It leaves because there was nothing to do.
        sentenced: (task, item) that ran too long.
        interrupted: (task, item, started_ns) that was told so.
    """

    __slots__ = ("asked", "idle", "interrupted", "ready", "sentenced", "state")

    def __init__(self) -> None:
        self.state = WorkerState.STARTING
        self.ready = self.asked = self.idle = False
        self.sentenced: tuple[int, int] | None = None
        self.interrupted: tuple[int, int, int] | None = None


class Staff:
    """The workers of one dispatcher.

    Attributes:
        workers: Those that are there, by index.
        vacancies: Places whose starts have failed too often -> when the next one may be tried (ns).
        limit_ns: How long an initializer may take; 0 = as long as it likes.
        notice_ns: After how long it is told that one goes on; 0 = never.
    """

    def __init__(self, limit_ns: int = 0, notice_ns: int = 0) -> None:
        self.workers: dict[int, Worker] = {}
        self.vacancies: dict[int, int] = {}
        self.limit_ns = limit_ns
        self.notice_ns = notice_ns
        self._failed = 0  # starts in a row
        self._told = False  # that the pool goes on with fewer

    def move(self, index: int, state: WorkerState) -> None:
        """The worker goes there.

        Raises:
            IllegalTransition: It cannot.
        """
        worker = self.workers[index]
        if worker.state is state:
            return
        if (worker.state, state) not in WORKER_TRANSITIONS:
            raise IllegalTransition(f"worker {index}: {worker.state.value} -> {state.value}")
        worker.state = state

    def start(self, index: int) -> None:
        """A process was asked for in this place."""
        if index in self.workers:
            raise IllegalTransition(f"worker {index} is there already")
        self.vacancies.pop(index, None)
        self.workers[index] = Worker()

    def ready(self, index: int) -> None:
        """The worker has run its initializer and takes tasks."""
        self._failed, self._told = 0, False
        self.workers[index].ready = True
        if self.workers[index].state is not WorkerState.RETIRED:
            self.move(index, WorkerState.READY)

    @property
    def works(self) -> bool:
        """Whether somebody takes tasks now."""
        return any(worker.state is WorkerState.READY for worker in self.workers.values())

    def count(self) -> int:
        """How many take tasks, or will."""
        return sum(worker.state in _TAKES_TASKS for worker in self.workers.values())

    def empty(self, size: int) -> list[int]:
        """The places, of so many, in which nobody is and none was found wanting."""
        return [index for index in range(size) if index not in self.workers and index not in self.vacancies]

    def resize(self, size: int) -> list[int]:
        """There are to be so many places: who is to leave."""
        self.vacancies = {index: due for index, due in self.vacancies.items() if index < size}
        leaving = [index for index, worker in self.workers.items() if index >= size and worker.state in _TAKES_TASKS]
        for index in leaving:
            self.move(index, WorkerState.RETIRED)
        return leaving

    # Starts that fail

    def fail(self, index: int, *, replace: bool) -> list[Start | Vacant | Broken]:
        """The worker in this place, which is gone, had never become ready.

        Args:
            index: The place.
            replace: Whether it is to be filled.
        """
        self._failed += 1
        if not replace:
            return []
        beyond = self._failed - SPARE_STARTS - len(self.workers)
        if beyond <= 0:
            return [Start(index)]
        return [self._vacate(index, beyond)] if self.count() else [Broken(self._failed)]

    def refuse(self, index: int) -> Vacant:
        """No process can be made for this place now, while somebody works."""
        self._failed += 1
        return self._vacate(index, max(1, self._failed - SPARE_STARTS - len(self.workers)))

    def _vacate(self, index: int, beyond: int) -> Vacant:
        self.vacancies[index] = _UNKNOWN
        first = self.works and not self._told  # where nobody works, it may still come to nothing
        self._told |= first
        return Vacant(index, self._failed, beyond, first)

    def put_off(self, index: int, due_ns: int) -> None:
        """After `Vacant`: the next start is tried then."""
        if index in self.vacancies:
            self.vacancies[index] = due_ns

    def fill(self, now_ns: int, looks: list[int]) -> list[Start]:
        """Whose vacancy is over; those of others are put to `looks`."""
        if self.count() and not self.works:
            return []
        looks += [due for due in self.vacancies.values() if now_ns < due < _UNKNOWN]
        return [Start(index) for index, due in self.vacancies.items() if due <= now_ns]

    # Initializers that take long

    @property
    def timed(self) -> bool:
        """Whether time matters to any of them."""
        if self.vacancies:
            return True
        return bool(self.limit_ns or self.notice_ns) and not all(worker.ready for worker in self.workers.values())

    def judge(self, sights: Iterable[Sight], now_ns: int, looks: list[int]) -> list[Overdue]:
        """Who has been in its initializer for too long; when others may be is put to `looks`."""
        patience = self.limit_ns or self.notice_ns
        if not patience:
            return []
        orders: list[Overdue] = []
        for sight in sights:
            worker = self.workers.get(sight.worker)
            if worker is None or worker.ready or worker.asked:
                continue
            began = sight.started_ns if sight.item == INITIALIZING else now_ns
            if began + patience > now_ns:
                looks.append(began + patience)
            else:
                worker.asked = True
                orders.append(Overdue(sight, fatal=bool(self.limit_ns)))
        return orders

    def blames(self, sight: Sight) -> bool:
        """Whether the worker, which was in its initializer, is still there. All that it has put is settled."""
        worker = self.workers.get(sight.worker)
        return worker is not None and not worker.ready

    def ask_again(self, index: int) -> None:
        """After `Overdue`: it could not be ended now."""
        if index in self.workers:
            self.workers[index].asked = False


_TAKES_TASKS: Final = frozenset((WorkerState.STARTING, WorkerState.READY))
