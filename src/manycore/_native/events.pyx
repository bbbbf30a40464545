# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, binding=False, embedsignature=True, embedsignature.format=clinic
"""Conditions, events and barriers in shared memory, which do not notice waiters that die.

The algorithms are `c/condition.h`, `c/event.h` and `c/barrier.h`; this file checks arguments, gives up the
interpreter while it waits, lets signals through, and turns outcomes into results and exceptions.

Unlike multiprocessing.synchronize: no semaphores inside, so a waiter that dies takes nothing with it; an
    event's `is_set` is one load; a condition wakes exactly as many as were meant, the oldest first.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t, uint64_t

from manycore._native.sync cimport (
    MC_AGAIN,
    MC_BROKEN,
    MC_TAKEN,
    MC_TIMED_OUT,
    Lock,
    Notifier,
    Shared,
    deadline_of,
    mc_outcome,
    mc_self,
    mc_spinner,
    mc_waiters,
    mc_waiting,
    mc_waiting_begin,
)

from threading import BrokenBarrierError

cdef extern from "owner.h" nogil:
    void mc_waiters_leave(mc_waiters *w, int index)

cdef extern from "event.h" nogil:
    ctypedef struct mc_bells:
        pass
    int mc_bells_enter(mc_bells *b, uint64_t self, int fd, uint64_t inode)
    void mc_bells_leave(mc_bells *b, uint64_t self, int slot)
    ctypedef struct mc_event:
        mc_waiters waiters
        mc_bells bells
    ctypedef struct mc_event_context:
        mc_event *event
        uint32_t count
    bint mc_event_has_passed(void *context)
    void mc_event_arm(mc_event *e, int slot)
    void mc_event_init(mc_event *e)
    bint mc_event_valid(const mc_event *e)
    bint mc_event_is_set(mc_event *e)
    void mc_event_set(mc_event *e)
    void mc_event_clear(mc_event *e)
    uint32_t mc_event_begin(mc_event *e)
    mc_outcome mc_event_wait(mc_event *e, uint32_t count, uint64_t self, mc_waiting *w, mc_spinner *spinner)
    void mc_event_left(mc_event *e, mc_waiting *w)

cdef extern from "condition.h" nogil:
    ctypedef struct mc_cond:
        pass
    ctypedef struct mc_cond_waiter:
        mc_waiting waiting
    void mc_cond_init(mc_cond *c)
    bint mc_cond_valid(const mc_cond *c)
    void mc_cond_enter(mc_cond *c, uint64_t self, mc_cond_waiter *w)
    ctypedef struct mc_cond_wakes:
        uint64_t slot[2]
    uint32_t mc_cond_notify(mc_cond *c, uint32_t count, mc_cond_wakes *later)
    void mc_cond_wake(mc_cond *c, mc_cond_wakes *later)
    mc_outcome mc_cond_wait(mc_cond *c, uint64_t self, mc_cond_waiter *waiter, mc_spinner *spinner)
    void mc_cond_bury(mc_cond *c, uint64_t self, uint32_t pid)
    void mc_cond_abandon(mc_cond *c, mc_cond_waiter *waiter)
    uint32_t mc_cond_sleepers(mc_cond *c)

cdef extern from "barrier.h" nogil:
    ctypedef struct mc_barrier:
        uint32_t parties
        bint watch
    ctypedef struct mc_barrier_waiter:
        mc_waiting waiting
        uint32_t index
    ctypedef enum mc_barrier_arrival:
        MC_BARRIER_WAIT
        MC_BARRIER_ACT
        MC_BARRIER_COMPLETE
        MC_BARRIER_IS_BROKEN
        MC_BARRIER_FULL
    uint32_t MC_BARRIER_MOST
    size_t mc_barrier_size(uint32_t parties)
    void mc_barrier_init(mc_barrier *b, uint32_t parties, bint watch)
    bint mc_barrier_valid(const mc_barrier *b, size_t size)
    void mc_barrier_bury(mc_barrier *b, uint32_t pid)
    void mc_barrier_abort(mc_barrier *b)
    void mc_barrier_reset(mc_barrier *b)
    void mc_barrier_enroll(mc_barrier *b, uint64_t self)
    void mc_barrier_withdraw(mc_barrier *b, uint64_t self)
    mc_barrier_arrival mc_barrier_arrive(mc_barrier *b, uint64_t self, bint has_action, mc_barrier_waiter *w)
    bint mc_barrier_complete(mc_barrier *b, uint64_t self, mc_barrier_waiter *w)
    void mc_barrier_fail(mc_barrier *b, mc_barrier_waiter *w)
    mc_outcome mc_barrier_wait(mc_barrier *b, mc_barrier_waiter *waiter, mc_spinner *spinner)
    void mc_barrier_abandon(mc_barrier *b, mc_barrier_waiter *w)
    uint32_t mc_barrier_waiting(mc_barrier *b)
    bint mc_barrier_is_broken(mc_barrier *b)

EVENT_BYTES = sizeof(mc_event)
CONDITION_BYTES = sizeof(mc_cond)


cdef object not_made(object self):
    return RuntimeError(f"{type(self).__name__}.__init__ was not called")


@cython.no_gc_clear
cdef class Event(Shared):
    """A flag that can be waited for."""

    cdef mc_event *event

    def _make(self, cell):
        """Begin a new event in the zeroed cell."""
        cdef mc_event *event = <mc_event *>self.attach(cell, sizeof(mc_event))
        mc_event_init(event)
        self.event = event

    def _join(self, cell):
        """Use the event that is in the cell."""
        cdef mc_event *event = <mc_event *>self.attach(cell, sizeof(mc_event))
        if not mc_event_valid(event):
            raise ValueError("there is no event in this memory, or one of another version of manycore")
        self.event = event

    def is_set(self):
        """Whether the event is set, this moment."""
        if self.event is NULL:
            raise not_made(self)
        return mc_event_is_set(self.event)

    def set(self):
        """Set the event, and wake all who wait for it. Never blocks, whoever waits and however they end."""
        if self.event is NULL:
            raise not_made(self)
        mc_event_set(self.event)

    def clear(self):
        """Unset the event."""
        if self.event is NULL:
            raise not_made(self)
        mc_event_clear(self.event)

    def wait(self, timeout=None):
        """Wait until the event is set.

        Args:
            timeout: Seconds to wait at most; None is for ever.

        Returns:
            Whether it was set before the timeout, even if it was cleared since.
        """
        cdef mc_waiting waiting
        cdef mc_outcome outcome = MC_AGAIN
        cdef uint32_t count
        cdef uint64_t me
        if self.event is NULL:
            raise not_made(self)
        if mc_event_is_set(self.event):
            return True
        mc_waiting_begin(&waiting, deadline_of(timeout))
        count = mc_event_begin(self.event)
        me = mc_self()
        try:
            while True:
                with nogil:
                    outcome = mc_event_wait(self.event, count, me, &waiting, &self.spinner)
                if outcome != MC_AGAIN:
                    return outcome == MC_TAKEN
                PyErr_CheckSignals()
        finally:
            mc_event_left(self.event, &waiting)

    # Watching, for `manycore._memory.bells`; an event has one side

    def _begin(self):
        """What `_passed` takes: how often it was set so far."""
        if self.event is NULL:
            raise not_made(self)
        return mc_event_begin(self.event)

    def _passed(self, uint32_t count):
        """Whether it is set, or was since then."""
        cdef mc_event_context context
        context.event = self.event
        context.count = count
        return mc_event_has_passed(&context)

    def _watch(self, int side, int fd, uint64_t inode):
        return mc_bells_enter(&self.event.bells, mc_self(), fd, inode)

    def _arm(self, int side, int slot):
        mc_event_arm(self.event, slot)

    def _unwatch(self, int side, int slot):
        mc_bells_leave(&self.event.bells, mc_self(), slot)


@cython.no_gc_clear
cdef class Condition(Notifier):
    """A condition over a lock. The lock is any object of ours, or one with acquire and release."""

    cdef mc_cond *cond
    cdef mc_cond_wakes later
    cdef readonly object _lock
    cdef Lock ours
    cdef readonly object acquire
    cdef readonly object release

    cdef int _adopt(self, object lock) except -1:
        self._lock = lock
        self.ours = lock if isinstance(lock, Lock) else None
        self.acquire = lock.acquire
        self.release = lock.release
        return 0

    def _make(self, cell, lock):
        """Begin a new condition in the zeroed cell."""
        cdef mc_cond *cond = <mc_cond *>self.attach(cell, sizeof(mc_cond))
        mc_cond_init(cond)
        self._adopt(lock)
        self.cond = cond

    def _join(self, cell, lock):
        """Use the condition that is in the cell."""
        cdef mc_cond *cond = <mc_cond *>self.attach(cell, sizeof(mc_cond))
        if not mc_cond_valid(cond):
            raise ValueError("there is no condition in this memory, or one of another version of manycore")
        self._adopt(lock)
        self.cond = cond

    def __enter__(self):
        return self._lock.__enter__()

    def __exit__(self, exc_type, exc, traceback):
        return self._lock.__exit__(exc_type, exc, traceback)

    cdef bint holds(self) except -1:
        if self.cond is NULL:
            raise not_made(self)
        if self.ours is not None:
            return self.ours.is_mine()
        semlock = getattr(self._lock, "_semlock", None)
        if semlock is not None:
            return semlock._is_mine()
        if self._lock.acquire(False):
            self._lock.release()
            return False
        return True

    def wait(self, timeout=None):
        """Release the lock, wait for a notification, and take the lock again.

        Args:
            timeout: Seconds to wait for the notification at most; None is for ever.

        Returns:
            Whether the notification came.

        Raises:
            AssertionError: This thread does not hold the lock.
            OwnerDied: The lock was taken again, from a process that died holding it.
        """
        cdef mc_cond_waiter waiter
        cdef mc_outcome outcome = MC_AGAIN
        cdef uint64_t me = mc_self()
        cdef uint32_t depth = 1
        if not self.holds():
            raise AssertionError("must acquire() condition before using wait()")
        mc_waiting_begin(&waiter.waiting, deadline_of(timeout))
        mc_cond_enter(self.cond, me, &waiter)
        if self.ours is not None:
            depth = self.ours.give_all()
        else:
            depth = release_all(self._lock)
        try:
            while True:
                with nogil:
                    outcome = mc_cond_wait(self.cond, me, &waiter, &self.spinner)
                if outcome != MC_AGAIN:
                    break
                PyErr_CheckSignals()
        finally:
            if outcome == MC_AGAIN:
                mc_cond_abandon(self.cond, &waiter)
            if self.ours is not None:
                self.ours.take_back(depth)
            else:
                for _ in range(depth):
                    self._lock.acquire()
        return outcome == MC_TAKEN

    def notify(self, n=1):
        """Wake `n` of those that wait, the oldest first; fewer if fewer wait.

        Raises:
            AssertionError: This thread does not hold the lock.
        """
        if not self.holds():
            raise AssertionError("lock is not owned")
        if n > 0:
            self.signal(min(n, 0xffffffff))

    def notify_all(self):
        """Wake all that wait."""
        if not self.holds():
            raise AssertionError("lock is not owned")
        self.signal(0xffffffff)

    cdef int signal(self, uint32_t count) except -1:
        """Signal so many; those that sleep are woken by the release of the lock, if that is one of ours."""
        mc_cond_notify(self.cond, count, &self.later)
        if self.later.slot[0] == 0 and self.later.slot[1] == 0:
            return 0
        if self.ours is None:
            self.wake()
        elif self.ours.notifier is not self:
            if self.ours.notifier is not None:
                self.ours.notifier.wake()
            self.ours.notifier = self
        return 0

    cdef int wake(self) except -1:
        mc_cond_wake(self.cond, &self.later)
        return 0

    cdef int bury(self, uint32_t pid) except -1:
        mc_cond_bury(self.cond, mc_self(), pid)
        return 0

    def _sleepers(self):
        return mc_cond_sleepers(self.cond)


cdef uint32_t release_all(object lock) except 0:
    """Release a lock of another make as often as this thread holds it."""
    semlock = getattr(lock, "_semlock", None)
    cdef uint32_t depth = semlock._count() if semlock is not None else 1
    for _ in range(depth):
        lock.release()
    return depth


@cython.no_gc_clear
cdef class Barrier(Shared):
    """A meeting point for a fixed number of parties."""

    cdef mc_barrier *barrier

    @staticmethod
    def _bytes(parties):
        """How large a cell this number of parties takes."""
        if not 1 <= parties <= MC_BARRIER_MOST:
            raise ValueError(f"a barrier has between 1 and {MC_BARRIER_MOST} parties, not {parties}")
        return mc_barrier_size(parties)

    def _make(self, cell, uint32_t parties, bint watch):
        """Begin a new barrier in the zeroed cell."""
        cdef mc_barrier *barrier = <mc_barrier *>self.attach(cell, mc_barrier_size(parties))
        mc_barrier_init(barrier, parties, watch)
        self.barrier = barrier

    def _join(self, cell):
        """Use the barrier that is in the cell."""
        cdef mc_barrier *barrier = <mc_barrier *>self.attach(cell, mc_barrier_size(0))
        if not mc_barrier_valid(barrier, self.size):
            raise ValueError("there is no barrier in this memory, or one of another version of manycore")
        self.barrier = barrier

    def _wait(self, action, timeout):
        """As `wait`, with the action and timeout of this object."""
        cdef mc_barrier_waiter waiter
        cdef mc_barrier_arrival arrival
        cdef mc_outcome outcome
        cdef uint64_t me = mc_self()
        if self.barrier is NULL:
            raise not_made(self)
        mc_waiting_begin(&waiter.waiting, deadline_of(timeout))
        while True:
            arrival = mc_barrier_arrive(self.barrier, me, action is not None, &waiter)
            if arrival == MC_BARRIER_COMPLETE:
                return waiter.index
            if arrival == MC_BARRIER_IS_BROKEN:
                raise BrokenBarrierError
            if arrival == MC_BARRIER_ACT:
                try:
                    action()
                except BaseException:
                    mc_barrier_fail(self.barrier, &waiter)
                    raise
                if not mc_barrier_complete(self.barrier, me, &waiter):
                    raise BrokenBarrierError
                return waiter.index
            outcome = MC_AGAIN
            try:
                while outcome == MC_AGAIN:
                    with nogil:
                        outcome = mc_barrier_wait(self.barrier, &waiter, &self.spinner)
                    if outcome == MC_AGAIN:
                        PyErr_CheckSignals()
            finally:
                if outcome == MC_AGAIN:
                    mc_barrier_abandon(self.barrier, &waiter)
            if outcome == MC_BROKEN:
                raise BrokenBarrierError
            if arrival == MC_BARRIER_WAIT:
                return waiter.index

    def reset(self):
        """Make the barrier empty and whole; who waits gets BrokenBarrierError."""
        mc_barrier_reset(self.barrier)

    def abort(self):
        """Break the barrier: who waits, and who comes, gets BrokenBarrierError until a reset."""
        mc_barrier_abort(self.barrier)

    def enroll(self):
        """Say that this process is one of the parties, before its first wait.

        When all parties are known, by enrolling or from the last time, the death of one that has not
        arrived breaks the barrier instead of making the others wait for ever.
        """
        mc_barrier_enroll(self.barrier, mc_self())

    @property
    def parties(self):
        """How many have to arrive."""
        return self.barrier.parties

    @property
    def n_waiting(self):
        """How many have arrived, this moment."""
        return mc_barrier_waiting(self.barrier)

    @property
    def broken(self):
        """Whether the barrier is broken."""
        return mc_barrier_is_broken(self.barrier)

    cdef int bury(self, uint32_t pid) except -1:
        mc_barrier_bury(self.barrier, pid)
        return 0

    def _forget(self):
        """This process exits in order: its absence breaks nothing."""
        if self.barrier is not NULL:
            mc_barrier_withdraw(self.barrier, mc_self())
