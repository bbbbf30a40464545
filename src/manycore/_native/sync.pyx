# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, binding=False, embedsignature=True, embedsignature.format=clinic
"""Locks and semaphores in shared memory, whose holders may die.

The algorithms are `c/lock.h` and `c/semaphore.h`; this file checks arguments, gives up the interpreter
while it waits, lets signals through, and turns outcomes into results and exceptions. What a user holds is
a subclass of these (`manycore.synchronize`) that adds names and pickling, and no method in the fast path.

Each object works on a cell: anything with a writable `buffer` that stays mapped as long as the cell lives.
It keeps the cell, and so the memory, alive.

Unlike multiprocessing.synchronize: no name, no descriptor of its own, no tracker; timeouts are on the
    monotonic clock; a holder's death is noticed.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EOVERFLOW, ERANGE
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *object)

cdef extern from "semaphore.h" nogil:
    ctypedef struct mc_sem:
        uint32_t initial
        uint32_t bounded
        mc_waiters waiters
    uint32_t MC_SEM_MOST
    size_t mc_sem_size(uint32_t value)
    void mc_sem_init(mc_sem *s, uint32_t value, bint bounded)
    bint mc_sem_valid(const mc_sem *s, size_t size)
    bint mc_sem_try(mc_sem *s, uint64_t self, uint32_t *hint)
    uint32_t mc_sem_value(mc_sem *s)
    int mc_sem_release(mc_sem *s, uint64_t self, uint32_t *hint)
    uint32_t mc_sem_repair(mc_sem *s)
    void mc_sem_bury(mc_sem *s, uint32_t pid)
    void mc_sem_forget(mc_sem *s, uint64_t self)
    mc_outcome mc_sem_wait(mc_sem *s, uint64_t self, mc_waiting *w, mc_spinner *spinner, uint32_t *hint)
    void mc_sem_left(mc_sem *s, mc_waiting *w, bint gave_up)

cdef extern from *:
    """
    enum { mc_lock_name_at = offsetof(mc_lock, name) };
    """
    int mc_lock_name_at
    int MC_LOCK_NAME

LOCK_BYTES = sizeof(mc_lock)
LOCK_NAME = slice(mc_lock_name_at, mc_lock_name_at + MC_LOCK_NAME)  # where in its cell a lock's name is
cdef int64_t LONG_WAIT_NS = 1_000_000_000  # a wait that nobody would call short; less and busy programs pay for looks
SEM_VALUE_MAX = MC_SEM_MOST


cdef int64_t deadline_of(object timeout) except -1:
    """The absolute deadline of a timeout in seconds; None is never, less than zero is now."""
    cdef double seconds
    cdef int64_t now
    if timeout is None:
        return MC_NEVER
    seconds = timeout
    if seconds != seconds:
        raise ValueError("a timeout is a number of seconds, not nan")
    now = mc_now_ns()
    if seconds <= 0:
        return now
    if seconds >= 9.0e9:
        return MC_NEVER
    return now + <int64_t>(seconds * 1e9)


cdef object owner_died(uint64_t dead, str what):
    from manycore.errors import OwnerDied

    pid = mc_owner_pid(dead)
    return OwnerDied(
        f"process {pid} died while it held {what}; you hold it now, and what it guards may be half changed", pid
    )


# All objects that this process has, the newest first. They are not counted as references.
cdef mc_link newest
newest.behind = NULL


def bury(uint32_t pid):
    """Say of a process that it is dead, in all that it holds and this process has: those who wait go on at once.

    Called by whoever learns of a child's death. What nobody is told they find out by looking.
    """
    cdef mc_link *at = newest.behind
    cdef Shared shared
    while at is not NULL:
        if Py_REFCNT(at.object) > 0:  # else it is going, and a callback of a weak reference let us in
            shared = <Shared>at.object
            shared.bury(pid)
        at = at.behind


cdef object long_wait = None


def on_long_wait(callback):
    """Have `callback(cell)` called by who has waited for a lock for 1, 2, 4, 8... s, until it returns true or raises."""
    global long_wait
    long_wait = callback


cdef int between(object cell, mc_waiting *waiting) except -1:
    """Between two parts of a wait for a lock."""
    PyErr_CheckSignals()
    if waiting.looks < 0 or waiting.began_ns == 0 or long_wait is None:
        return 0
    if mc_now_ns() - waiting.began_ns >= LONG_WAIT_NS << waiting.looks:
        waiting.looks += 1
        if long_wait(cell):
            waiting.looks = -1
    return 0


@cython.no_gc_clear
cdef class Shared:
    """What all have in common: a cell, kept mapped and alive."""

    cdef void *attach(self, object cell, size_t least) except NULL:
        cdef Py_buffer view
        if self.cell is not None:
            raise RuntimeError(f"this {type(self).__name__} has its memory already")
        # Not kept exported: a memoryview that the collector clears while it is exported crashes. The reference
        # to the cell keeps the memory mapped, and no_gc_clear keeps the reference until the object goes.
        PyObject_GetBuffer(cell.buffer, &view, PyBUF_WRITABLE)
        PyBuffer_Release(&view)
        if <size_t>view.len < least or <uintptr_t>view.buf % 64 != 0:
            raise ValueError(f"{least} bytes on a cache line are wanted for a {type(self).__name__}")
        self.cell = cell
        self.size = view.len
        self.link = mc_link(&newest, newest.behind, <PyObject *>self)
        if newest.behind is not NULL:
            newest.behind.before = &self.link
        newest.behind = &self.link
        return view.buf

    def __dealloc__(self):
        if self.link.object is NULL:
            return
        self.link.before.behind = self.link.behind
        if self.link.behind is not NULL:
            self.link.behind.before = self.link.before

    cdef int bury(self, uint32_t pid) except -1:
        """Do now what others would do once they notice that the process is dead."""
        return 0


cdef object not_made(object self):
    return RuntimeError(f"{type(self).__name__}.__init__ was not called")


@cython.no_gc_clear
cdef class Notifier(Shared):
    """What has signalled waiters under a lock, and owes them wake-ups once the lock is free."""

    cdef int wake(self) except -1:
        return 0


@cython.no_gc_clear
cdef class Lock(Shared):
    """An owner lock. Any thread of any process may release it."""

    def _make(self, cell, bint tells):
        """Begin a new lock in the zeroed cell. `tells`: raise OwnerDied on a takeover."""
        cdef mc_lock *lock = <mc_lock *>self.attach(cell, sizeof(mc_lock))
        mc_lock_init(lock, self.recursive)
        self.tells = tells
        self.lock = lock

    def _join(self, cell, bint tells):
        """Use the lock that is in the cell."""
        cdef mc_lock *lock = <mc_lock *>self.attach(cell, sizeof(mc_lock))
        if not mc_lock_valid(lock):
            raise ValueError("there is no lock in this memory, or one of another version of manycore")
        self.tells = tells
        self.lock = lock

    def acquire(self, block=True, timeout=None):
        """Take the lock.

        Args:
            block: Wait for it.
            timeout: Seconds to wait at most; None is for ever, less than zero is zero.

        Returns:
            Whether the lock was taken.

        Raises:
            OwnerDied: The lock was taken, from a process that died holding it.
        """
        if self.lock is NULL:
            raise not_made(self)
        if mc_lock_try(self.lock, mc_self()):
            return True
        if not block:
            return self.take(0) != 0
        return self.take(deadline_of(timeout)) != 0

    def release(self):
        """Give the lock back.

        Raises:
            ValueError: Nobody holds it.
        """
        if self.notifier is not None:
            self.give()
        elif self.lock is NULL or not mc_lock_release(self.lock):
            raise ValueError("semaphore or lock released too many times")

    def __enter__(self):
        if self.lock is NULL:
            raise not_made(self)
        if mc_lock_try(self.lock, mc_self()):
            return True
        self.take_or_release()
        return True

    def __exit__(self, exc_type, exc, traceback):
        if self.notifier is not None:
            self.give()
        elif not mc_lock_release(self.lock):
            raise ValueError("semaphore or lock released too many times")

    cdef int take_or_release(self) except -1:
        from manycore.errors import OwnerDied

        try:
            self.take(MC_NEVER)
        except OwnerDied:
            self.give()  # `with` will not call __exit__
            raise
        return 0

    cdef int bury(self, uint32_t pid) except -1:
        mc_lock_bury(self.lock, pid)
        return 0

    cdef bint is_mine(self):
        return mc_lock_is_mine(self.lock, mc_self())

    cdef int take(self, int64_t deadline_ns) except -1:
        """1 when taken, 0 when not. A deadline of 0 does not wait."""
        cdef mc_waiting waiting
        cdef mc_outcome outcome
        cdef uint64_t me = mc_self()
        cdef int64_t now
        mc_waiting_begin(&waiting, deadline_ns)
        if deadline_ns == 0:
            if mc_lock_barge(self.lock, me):
                return 1
            # Whoever asks again and again without waiting finds out about a death too, some milliseconds later.
            now = mc_now_ns()
            if now - self.looked_ns < MC_TRY_CHECK_NS and not mc_lock_is_buried(self.lock):
                return 0
            self.looked_ns = now
            if not mc_lock_take_over(self.lock, me, &waiting.dead):
                return 0
            outcome = MC_TAKEN_OVER
        elif mc_lock_short_spin(self.lock, me):
            return 1
        else:
            try:
                while True:
                    with nogil:
                        outcome = mc_lock_wait(self.lock, me, &waiting, &self.spinner)
                    if outcome != MC_AGAIN:
                        break
                    between(self.cell, &waiting)
            finally:
                mc_lock_left(self.lock, &waiting)
        if outcome == MC_TIMED_OUT:
            return 0
        if outcome == MC_TAKEN_OVER and self.tells:
            self.took_over()
            raise owner_died(waiting.dead, f"this {type(self).__name__}")
        return 1

    cdef int took_over(self) except -1:
        """Called with the lock held, before OwnerDied is raised."""
        return 0

    cdef int give(self) except -1:
        """Release, then wake those whom a condition of this lock has signalled."""
        cdef Notifier notifier = self.notifier
        if not mc_lock_release(self.lock):
            raise ValueError("semaphore or lock released too many times")
        if notifier is not None:
            self.notifier = None
            notifier.wake()
        return 0

    cdef uint32_t give_all(self) except? 0xffffffff:
        self.give()
        return 1

    cdef int take_back(self, uint32_t depth) except -1:
        """Acquire after a wait on a condition. An exception of a signal handler waits for the lock, once."""
        cdef object stashed = None
        while True:
            try:
                if not mc_lock_try(self.lock, mc_self()):
                    self.take(MC_NEVER)
                break
            except BaseException as error:
                if self.is_mine() or stashed is not None:
                    if self.is_mine():
                        self.lock.depth = depth
                    raise
                stashed = error
        self.lock.depth = depth
        if stashed is not None:
            raise stashed
        return 0

    def locked(self):
        """Whether anybody holds it, this moment."""
        return self._owner()[0] != 0

    def _is_mine(self):
        return self.is_mine()

    def _count(self):
        return 1 if self.is_mine() else 0

    def _is_zero(self):
        return self.locked()

    def _get_value(self):
        return 0 if self.locked() else 1

    def _owner(self):
        """(pid, thread, since in ns of the monotonic clock, dead); pid 0 when free."""
        cdef uint64_t state
        if self.lock is NULL:
            raise not_made(self)
        state = mc_lock_state(self.lock)
        return mc_owner_pid(state), mc_lock_tid(self.lock), mc_lock_since(self.lock), mc_owner_is_dead(state)

    @property
    def _tells(self):
        return self.tells

    @property
    def _semlock(self):
        return self


cdef extern from *:
    """
    static inline uint64_t mc_lock_state(mc_lock *l) { return atomic_load(&l->state); }
    static inline uint32_t mc_lock_tid(mc_lock *l) { return atomic_load(&l->tid); }
    static inline int64_t mc_lock_since(mc_lock *l) { return atomic_load(&l->since_ns); }
    """
    uint64_t mc_lock_state(mc_lock *l) nogil
    uint32_t mc_lock_tid(mc_lock *l) nogil
    int64_t mc_lock_since(mc_lock *l) nogil


@cython.no_gc_clear
cdef class RLock(Lock):
    """A lock that its owner, one thread of one process, may take again."""

    def __cinit__(self):
        self.recursive = True

    def acquire(self, block=True, timeout=None):
        """Take the lock, once more if this thread has it. Arguments and errors as `Lock.acquire`."""
        cdef uint64_t me = mc_self()
        if self.lock is NULL:
            raise not_made(self)
        if mc_lock_try(self.lock, me):
            self.lock.depth = 1
            return True
        if mc_lock_is_mine(self.lock, me):
            self.lock.depth += 1
            return True
        if not self.take(deadline_of(timeout) if block else 0):
            return False
        self.lock.depth = 1
        return True

    def release(self):
        """Give the lock back; the last of as many releases as acquires frees it.

        Raises:
            AssertionError: This thread does not hold it.
        """
        if self.notifier is not None:
            self.give()
        elif self.lock is NULL or not mc_rlock_release(self.lock, mc_self()):
            raise AssertionError("attempt to release recursive lock not owned by thread")

    def __enter__(self):
        cdef uint64_t me = mc_self()
        if self.lock is NULL:
            raise not_made(self)
        if mc_lock_try(self.lock, me):
            self.lock.depth = 1
        elif mc_lock_is_mine(self.lock, me):
            self.lock.depth += 1
        else:
            self.take_or_release()
            self.lock.depth = 1
        return True

    def __exit__(self, exc_type, exc, traceback):
        if self.notifier is not None:
            self.give()
        elif not mc_rlock_release(self.lock, mc_self()):
            raise AssertionError("attempt to release recursive lock not owned by thread")

    cdef int took_over(self) except -1:
        self.lock.depth = 1
        return 0

    cdef int give(self) except -1:
        cdef Notifier notifier = self.notifier
        cdef bint last = self.lock.depth <= 1
        if not mc_rlock_release(self.lock, mc_self()):
            raise AssertionError("attempt to release recursive lock not owned by thread")
        if last and notifier is not None:
            self.notifier = None
            notifier.wake()
        return 0

    cdef uint32_t give_all(self) except? 0xffffffff:
        cdef uint32_t depth = self.lock.depth
        self.lock.depth = 1
        self.give()
        return depth

    def _count(self):
        return self.lock.depth if self.is_mine() else 0


@cython.no_gc_clear
cdef class Semaphore(Shared):
    """A count of permits; those that dead processes held come back."""

    cdef mc_sem *sem
    cdef uint32_t hint
    cdef int64_t looked_ns

    @staticmethod
    def _bytes(value):
        """How large a cell this initial value takes."""
        if not isinstance(value, int):
            raise TypeError(f"'{type(value).__name__}' object cannot be interpreted as an integer")
        if not 0 <= value <= MC_SEM_MOST:
            raise ValueError(f"the value of a semaphore is between 0 and {MC_SEM_MOST}, not {value}")
        return mc_sem_size(value)

    def _make(self, cell, uint32_t value, bint bounded):
        """Begin a new semaphore in the zeroed cell."""
        cdef mc_sem *sem = <mc_sem *>self.attach(cell, mc_sem_size(value))
        mc_sem_init(sem, value, bounded)
        self.sem = sem

    def _join(self, cell):
        """Use the semaphore that is in the cell."""
        cdef mc_sem *sem = <mc_sem *>self.attach(cell, mc_sem_size(0))
        if not mc_sem_valid(sem, self.size):
            raise ValueError("there is no semaphore in this memory, or one of another version of manycore")
        self.sem = sem

    def acquire(self, block=True, timeout=None):
        """Take a permit.

        Args:
            block: Wait for one.
            timeout: Seconds to wait at most; None is for ever, less than zero is zero.

        Returns:
            Whether a permit was taken.
        """
        if self.sem is NULL:
            raise not_made(self)
        if mc_sem_try(self.sem, mc_self(), &self.hint):
            return True
        return self.take(deadline_of(timeout) if block else 0) != 0

    def release(self):
        """Give a permit back, or make one more where nobody has any.

        Raises:
            ValueError: The semaphore is bounded, and nobody has a permit.
            OverflowError: There are as many permits as there can be.
        """
        if self.sem is NULL:
            raise not_made(self)
        cdef int error = mc_sem_release(self.sem, mc_self(), &self.hint)
        if error == ERANGE:
            raise ValueError("semaphore or lock released too many times")
        if error == EOVERFLOW:
            raise OverflowError("semaphore has the largest value that is possible")

    def __enter__(self):
        if self.sem is NULL:
            raise not_made(self)
        if not mc_sem_try(self.sem, mc_self(), &self.hint):
            self.take(MC_NEVER)
        return True

    def __exit__(self, exc_type, exc, traceback):
        self.release()

    cdef int take(self, int64_t deadline_ns) except -1:
        cdef mc_waiting waiting
        cdef mc_outcome outcome = MC_TIMED_OUT
        cdef uint64_t me = mc_self()
        cdef int64_t now
        if deadline_ns == 0:
            now = mc_now_ns()
            if now - self.looked_ns < MC_TRY_CHECK_NS:
                return 0
            self.looked_ns = now
            return mc_sem_repair(self.sem) and mc_sem_try(self.sem, me, &self.hint)
        mc_waiting_begin(&waiting, deadline_ns)
        outcome = MC_AGAIN
        try:
            while True:
                with nogil:
                    outcome = mc_sem_wait(self.sem, me, &waiting, &self.spinner, &self.hint)
                if outcome != MC_AGAIN:
                    break
                PyErr_CheckSignals()
        finally:
            mc_sem_left(self.sem, &waiting, outcome == MC_AGAIN)
        return outcome == MC_TAKEN

    def get_value(self):
        """How many permits are free, this moment; those of dead processes count as free."""
        if self.sem is NULL:
            raise not_made(self)
        mc_sem_repair(self.sem)
        return mc_sem_value(self.sem)

    def locked(self):
        """Whether no permit is free, this moment."""
        return self.get_value() == 0

    cdef int bury(self, uint32_t pid) except -1:
        mc_sem_bury(self.sem, pid)
        return 0

    def _forget(self):
        """What this process holds is not to come back when it ends."""
        if self.sem is not NULL:
            mc_sem_forget(self.sem, mc_self())

    def _get_value(self):
        return self.get_value()

    def _is_zero(self):
        return self.get_value() == 0

    @property
    def _initial(self):
        return self.sem.initial

    @property
    def _semlock(self):
        return self
