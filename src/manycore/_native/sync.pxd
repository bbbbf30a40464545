# What the other extensions of this folder use of locks, without a Python call.
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "Python.h":
    pass

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    """

cdef extern from "owner.h" nogil:
    ctypedef enum mc_outcome:
        MC_TAKEN
        MC_TAKEN_OVER
        MC_TIMED_OUT
        MC_AGAIN
        MC_BROKEN
    ctypedef struct mc_waiting:
        uint64_t dead
        int64_t deadline_ns
        int64_t began_ns
        bint slept
        int looks
    ctypedef struct mc_spinner:
        pass
    ctypedef struct mc_waiters:
        pass
    int64_t MC_NEVER
    int64_t MC_TRY_CHECK_NS
    uint64_t mc_self()
    uint32_t mc_thread(uint64_t self)
    uint32_t mc_owner_pid(uint64_t owner)
    bint mc_owner_is_dead(uint64_t owner)
    int64_t mc_now_ns()
    void mc_waiting_begin(mc_waiting *w, int64_t deadline_ns)

cdef extern from "lock.h" nogil:
    ctypedef struct mc_lock:
        mc_waiters waiters
        uint32_t depth
    void mc_lock_init(mc_lock *l, uint32_t kind)
    bint mc_lock_valid(const mc_lock *l)
    bint mc_lock_try(mc_lock *l, uint64_t self)
    bint mc_lock_barge(mc_lock *l, uint64_t self)
    bint mc_lock_release(mc_lock *l)
    bint mc_lock_take_over(mc_lock *l, uint64_t self, uint64_t *dead)
    bint mc_lock_short_spin(mc_lock *l, uint64_t self)
    bint mc_lock_bury(mc_lock *l, uint32_t pid)
    bint mc_lock_is_buried(mc_lock *l)
    mc_outcome mc_lock_wait(mc_lock *l, uint64_t self, mc_waiting *w, mc_spinner *spinner)
    void mc_lock_left(mc_lock *l, mc_waiting *w)
    bint mc_lock_is_mine(mc_lock *l, uint64_t self)
    bint mc_rlock_release(mc_lock *l, uint64_t self)


cdef struct mc_link:  # in the list of all objects that this process has
    mc_link *before
    mc_link *behind
    PyObject *object


cdef int64_t deadline_of(object timeout) except -1
cdef object owner_died(uint64_t dead, str what)
cdef int between(object cell, mc_waiting *waiting) except -1


cdef class Shared:
    cdef object __weakref__
    cdef readonly object cell
    cdef size_t size
    cdef mc_spinner spinner
    cdef mc_link link
    cdef int bury(self, uint32_t pid) except -1
    cdef void *attach(self, object cell, size_t least) except NULL


cdef class Notifier(Shared):
    cdef int wake(self) except -1


cdef class Lock(Shared):
    cdef mc_lock *lock
    cdef Notifier notifier
    cdef bint tells
    cdef bint recursive
    cdef int64_t looked_ns
    cdef bint is_mine(self)
    cdef int take(self, int64_t deadline_ns) except -1
    cdef int take_or_release(self) except -1
    cdef int took_over(self) except -1
    cdef int give(self) except -1
    cdef uint32_t give_all(self) except? 0xffffffff
    cdef int take_back(self, uint32_t depth) except -1


cdef class RLock(Lock):
    pass
