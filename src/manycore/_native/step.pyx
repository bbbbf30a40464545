# cython: language_level=3
"""Steps of a thread that what interrupts them must not wait for, and the lock that begins and ends them.

    with mutex:                                 a handler of a signal, or a finalizer that the garbage collector runs
        ... a step ...   <--------------------  `with mutex:`        raises RuntimeError in place of waiting for ever
                                                `postpone(call)`     is noted
    the outermost step ends: the call is made

Python runs the handler of a signal between two instructions of its main thread, and finalizers wherever something is
made, in any thread. Whatever they call may want a lock that the very thread holds beneath them, which cannot go on
before they return. A `Mutex` knows who holds it, so it sees that. What needs no answer, such as ending a pool, can wait
for the end of the step, which is some microseconds away.

A thread's steps may be nested: mutexes that it holds, and, in the main thread, shields (shield.pxi) that are raised.

Invariants:
    depth = mutexes that the thread holds + shields that it has raised
    what was postponed is called once, in the same thread, when its depth is 0, in the order in which it was asked for
If a process dies: nothing is kept here. A fork is in no step, and forgets what its parent's thread had postponed.
Unlike threading.Lock: only the thread that has taken it gives it back. Unlike threading.RLock: taking it twice raises.
Cost: as threading.Lock.
"""

import os
import sys

from cpython.exc cimport PyErr_CheckSignals

cdef extern from *:
    """
    #include "pythread.h"
    static _Thread_local int mc_depth;
    static _Thread_local int mc_lent; /* of these, mutexes that others than this package take as well */
    static PyThread_type_lock mc_lock(void *lock) { return (PyThread_type_lock)lock; }
    """
    int mc_depth, mc_lent
    ctypedef void *PyThread_type_lock
    ctypedef enum PyLockStatus:
        PY_LOCK_FAILURE
        PY_LOCK_ACQUIRED
        PY_LOCK_INTR
    PyThread_type_lock PyThread_allocate_lock() nogil
    void PyThread_free_lock(PyThread_type_lock lock) nogil
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int intr) nogil
    void PyThread_release_lock(PyThread_type_lock lock) nogil
    unsigned long PyThread_get_thread_ident() nogil
    PyThread_type_lock mc_lock(void *lock) nogil

NESTED = (
    "this call would wait for a step that its own thread is in the middle of: it was made from the handler of a signal, "
    "or from a finalizer; set a flag there, and make the call when the step is over"
)

cdef dict _postponed = {}  # by thread: what is to be called when its step ends
cdef Py_ssize_t _count = 0  # of them all


cdef int enter_step() except -1:
    global mc_depth
    mc_depth += 1
    return 0


cdef int leave_step() except -1:
    global mc_depth
    if mc_depth > 0:  # it is not in a fork, which may return through the steps of its parent
        mc_depth -= 1
    if _count and mc_depth == 0:
        return _call_postponed()
    return 0


cdef int _call_postponed() except -1:
    global _count
    me = PyThread_get_thread_ident()
    cdef list calls = _postponed.get(me)
    while calls:
        call = calls.pop(0)
        _count -= 1
        if not calls:
            _postponed.pop(me, None)
        try:
            call()
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
        calls = _postponed.get(me)
    return 0


cdef int look_free() except -1:
    if mc_depth:
        raise RuntimeError(NESTED)
    return 0


def check_free():
    """Raise unless this thread may take locks and wait.

    Raises:
        RuntimeError: It is in the middle of a step.
    """
    look_free()


def inside(bint lent=True):
    """Whether this thread is in the middle of a step: what is called now must not wait.

    Args:
        lent: Reentrant mutexes count, which others take as well.
    """
    return mc_depth != (0 if lent else mc_lent)


def postpone(call):
    """Have it called when the outermost step of this thread ends; False, and nothing done, where there is none."""
    global _count
    if mc_depth == 0:
        return False
    _postponed.setdefault(PyThread_get_thread_ident(), []).append(call)
    _count += 1
    return True


def wake_all(waiters):
    """Wake who waits for a condition, whose waiters these are; as `notify_all`, which an interrupt may leave half done."""
    while waiters:
        try:
            waiters.popleft().release()
        except (RuntimeError, IndexError):  # it is awake; another thread had the last one
            pass


cdef class Mutex:
    """A lock whose holder is known: `with mutex:` raises RuntimeError where it would wait for this very thread.

    Entering and leaving are single steps that a signal cannot come between. It can be a condition's lock.

    Args:
        reentrant: Who holds it may take it again, as a `threading.RLock`.
    """

    def __cinit__(self, bint reentrant=False):
        self.reentrant = reentrant
        self.lock = <void *>PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError

    def __dealloc__(self):
        global mc_depth, mc_lent
        if self.lock != NULL:
            if self.holder:
                if self.holder == PyThread_get_thread_ident():  # somebody's exception has left it held
                    mc_depth = max(0, mc_depth - self.again - 1)
                    mc_lent = max(0, mc_lent - (self.again + 1) * self.reentrant)
                PyThread_release_lock(mc_lock(self.lock))
            PyThread_free_lock(mc_lock(self.lock))

    cdef int take(self) except -1:
        global mc_depth, mc_lent
        cdef PyLockStatus status = PyThread_acquire_lock_timed(mc_lock(self.lock), 0, 0)
        if status != PY_LOCK_ACQUIRED:
            if self.holder == PyThread_get_thread_ident():
                if not self.reentrant:
                    raise RuntimeError(NESTED)
                self.again += 1
                mc_depth += 1
                mc_lent += 1
                return 0
            while status != PY_LOCK_ACQUIRED:
                with nogil:
                    status = PyThread_acquire_lock_timed(mc_lock(self.lock), -1, 1)
                if status == PY_LOCK_INTR:
                    PyErr_CheckSignals()
        self.holder = PyThread_get_thread_ident()
        mc_depth += 1
        mc_lent += self.reentrant
        return 0

    cdef int give(self) except -1:
        global mc_lent
        if self.holder != PyThread_get_thread_ident():
            raise RuntimeError("this thread has not taken it")
        if mc_lent > 0:
            mc_lent -= self.reentrant
        if self.again:
            self.again -= 1
            return leave_step()
        self.holder = 0
        PyThread_release_lock(mc_lock(self.lock))
        return leave_step()

    def __enter__(self):
        self.take()

    def __exit__(self, kind, error, traceback):
        self.give()

    def acquire(self, blocking=True):
        """Take it; False if another thread has it and `blocking` is false."""
        if not blocking and self.holder and not (self.reentrant and self.holder == PyThread_get_thread_ident()):
            return False
        self.take()
        return True

    def release(self):
        """Give it back."""
        self.give()

    def locked(self):
        """Whether a thread has it."""
        return self.holder != 0

    def _is_owned(self):
        return self.holder == PyThread_get_thread_ident()


def _forked() -> None:
    global _count, mc_depth, mc_lent
    _postponed.clear()
    _count = mc_depth = mc_lent = 0


os.register_at_fork(after_in_child=_forked)
