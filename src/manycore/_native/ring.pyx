# cython: language_level=3, boundscheck=False, wraparound=False
"""The task ring and the result ring: argument checks, the interpreter lock and errors over c/*.h."""

import threading

from manycore._native.codec import PACKED_MARK, unpack

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.float cimport PyFloat_AS_DOUBLE
from cpython.object cimport PyObject
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp, memcpy, memset

cdef extern from "Python.h":
    object PyObject_Call(object function, object args, PyObject *kwargs)
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1

cdef extern from "<errno.h>":
    const int EINTR, ETIMEDOUT

cdef extern from "<stdbool.h>":
    ctypedef int c_bool "bool"

cdef extern from "task_ring.h" nogil:
    ctypedef struct mc_word:
        pass
    ctypedef struct mc_spinner:
        pass
    ctypedef struct mc_slot:
        uint64_t task
        uint32_t function
        uint32_t flags
        uint32_t length
        uint8_t *payload
    ctypedef struct mc_page:
        mc_word asleep
        mc_word stop
        uint64_t task
        uint64_t item
        int64_t started_ns
        uint64_t items_done
        int64_t busy_ns
        uint64_t heard
    ctypedef struct mc_tasks:
        uint32_t slots
        mc_word fg
        mc_word bg
        uint64_t head
        uint64_t tail
        uint64_t alarms
        uint32_t claimer_cpu
        mc_page *pages
    const int MC_WORKERS_MAX
    const int MC_SLOT_PAYLOAD
    const int64_t MC_NEVER
    int64_t mc_now_ns()
    bint mc_spin(mc_spinner *spinner, c_bool (*ready)(void *) noexcept nogil, void *context)
    void mc_slept(mc_spinner *spinner, int64_t since_ns)
    uint32_t mc_spin_cores(mc_spinner *spinner)
    int mc_wait(mc_word *word, uint32_t expected, int64_t deadline_ns)
    size_t mc_tasks_bytes(uint32_t slots)
    void mc_tasks_init(mc_tasks *t, uint32_t slots)
    bint mc_tasks_valid(const mc_tasks *t, size_t nbytes)
    uint64_t mc_ready(mc_tasks *t)
    bint mc_is_here(uint32_t *cpu)
    void mc_wake_worker(mc_tasks *t, unsigned worker)
    bint mc_wake_one(mc_tasks *t)
    unsigned mc_asleep(mc_tasks *t)
    int64_t mc_publish(mc_tasks *t, uint64_t task, uint32_t function, uint32_t flags, const void *head,
                       uint32_t head_length, const void *payload, uint32_t length)
    bint mc_holds(mc_tasks *t, uint64_t ticket)
    bint mc_is_ready(mc_tasks *t, uint64_t ticket)
    mc_slot *mc_slot_of(mc_tasks *t, uint64_t ticket)
    void mc_kick(mc_tasks *t)
    bint mc_withdraw(mc_tasks *t, uint64_t ticket)
    uint32_t mc_repair(mc_tasks *t, unsigned worker, uint64_t *tasks, uint32_t capacity)
    void mc_lease(mc_tasks *t, int64_t *lease, int64_t now_ns)
    void mc_decline(mc_tasks *t, int64_t *lease)
    mc_slot *mc_claim(mc_tasks *t, unsigned worker, int64_t *lease)
    void mc_free(mc_slot *slot)
    int mc_worker_wait(mc_tasks *t, unsigned worker, mc_spinner *spinner, int64_t *lease, bint collected,
                       int64_t deadline_ns)
    void mc_notify(mc_tasks *t, bint urgent)
    void mc_alarm(mc_tasks *t)
    void mc_ring_word(mc_word *word, uint32_t asleep, uint32_t awake)

cdef extern from "result_ring.h" nogil:
    ctypedef struct mc_record:
        uint32_t size
        uint8_t status
        uint8_t kind
        uint16_t flags
        uint64_t task
        uint64_t item
        int64_t took_ns
        uint32_t length
    ctypedef struct mc_short:
        uint32_t size
        uint8_t status
        uint8_t kind
        uint16_t took_ns
        uint64_t value
    ctypedef struct mc_results:
        uint64_t capacity
        uint64_t head
        uint64_t tail
    void mc_results_init(mc_results *r, uint64_t capacity)
    bint mc_results_valid(const mc_results *r, size_t nbytes)
    bint mc_results_empty(const mc_results *r)
    uint64_t mc_results_used(mc_results *r)
    mc_record *mc_reserve(mc_results *r, uint32_t size)
    void mc_commit(mc_results *r, uint32_t size)
    int mc_wait_room(mc_results *r, uint32_t size)
    mc_record *mc_look(const mc_results *r, uint64_t head, uint64_t *tail, c_bool *broken)
    void mc_take_to(mc_results *r, uint64_t tail)

cdef extern from *:
    """
    #define MC_LOAD(field) atomic_load(&(field))
    #define MC_STORE(field, value) atomic_store(&(field), (value))
    #define MC_RELEASE(field, value) atomic_store_explicit(&(field), (value), memory_order_release)

    /* The same clock to the kernel's last tick: a quarter of the cost. */
    static inline int64_t mc_coarse_ns(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    """
    uint64_t MC_LOAD(...) nogil
    void MC_STORE(...) nogil
    void MC_RELEASE(...) nogil
    int64_t mc_coarse_ns() nogil

cdef object get_ident = threading.get_ident
cdef object COLLECTOR = "collector"

WORKERS_MAX = MC_WORKERS_MAX
INLINE_BYTES = MC_SLOT_PAYLOAD      # the longest payload of a task that the ring holds itself
FRAGMENT_BYTES = 32768              # a longer payload of a result goes in records of this size

cdef enum:
    SIGN_BYTES = 80                 # of what a process's title says of its task; a longer name is cut

# How a record's payload is encoded.
cdef enum:
    KIND_PICKLE = 0
    KIND_NONE = 1
    KIND_TRUE = 2
    KIND_FALSE = 3
    KIND_INT = 4
    KIND_FLOAT = 5
    KIND_STR = 6
    KIND_BYTES = 7
    KIND_LAST = 7

cdef uint8_t PACKED = PACKED_MARK   # the first byte of packed arguments
IN_BLOCKS = 8                       # flag of a frame or a record: its payload is in blocks of an arena

DECODING = 0xffffffffffffffff       # a page's item while the worker still unpickles the task
MORE = 1                            # flag of a record: the payload goes on in the next one


def now_ns():
    """CLOCK_MONOTONIC in nanoseconds, as the rings use it."""
    return mc_now_ns()


cdef int64_t NOTIFY_NS = 1000000    # between two times that a worker wakes the collector thread
cdef int64_t LATE_NOTIFY_NS = 50000000  # the same amidst a chunk whose results nobody waits for one by one
cdef int64_t CROWDED_NS = 100000    # between two looks at whether the result ring is half full

# Items of a chunk that take less than this are timed together, so many at a time: the clock costs as much as they do.
cdef int64_t TINY_NS = 1000
cdef int64_t TOGETHER = 8


cdef inline int64_t deadline_of(object deadline_ns) except? -1:
    return MC_NEVER if deadline_ns is None else <int64_t>deadline_ns


cdef class Turn

include "task_ring.pxi"


cdef c_bool rings_ready(void *context) noexcept nogil:
    cdef mc_results **ring = <mc_results **>context
    while ring[0] != NULL:
        if not mc_results_empty(ring[0]):
            return True
        ring += 1
    return False


cdef class Turn:
    """Whose turn it is to read the result rings: one thread's at a time.

    `with turn as mine:` makes the thread the foreground, if nobody else has the turn; `take` and `give` are for the
    collector thread. Entering and leaving are single steps that a signal cannot come between. A thread that has it gets
    it again, in the handler of a signal that came while it waits.

    Args:
        tasks: Whose bell hears of it.

    Attributes:
        rings: The result rings; leaving looks at them, and wakes the collector for what is left.
        foreground: Whether a thread that waits for a result has the turn.
    """

    cdef TaskRing tasks
    cdef public list rings
    cdef object holder
    cdef object collector  # the collector thread, while it has the turn
    cdef Py_ssize_t nested
    cdef uint64_t seen

    def __cinit__(self, TaskRing tasks):
        self.tasks = tasks
        self.rings = []
        self.holder = None

    def __enter__(self):
        if self.holder is not None:
            if not self.is_mine():
                return False
            self.nested += 1
            return True
        self.holder = get_ident()
        self.seen = MC_LOAD(self.tasks.tasks.alarms)
        MC_STORE(self.tasks.tasks.fg, 1)
        return True

    def __exit__(self, kind, error, traceback):
        if not self.is_mine():
            return
        if self.nested:
            self.nested -= 1
            mc_alarm(self.tasks.tasks)  # what the thread waits for beneath may have been settled here
            return
        if self.holder is COLLECTOR:
            return
        self.holder = None
        MC_STORE(self.tasks.tasks.fg, 0)
        if kind is not None or MC_LOAD(self.tasks.tasks.alarms) != self.seen:
            mc_alarm(self.tasks.tasks)  # the collector may have heard it while it was not its turn
        elif any_results(self.rings):
            mc_ring_word(&self.tasks.tasks.bg, 1, 0)

    def alarms(self):
        """As `TaskRing.alarms`, for who has the turn: leaving tells the collector of any that came after this.

        None when this thread has lost it.
        """
        if not self.is_mine():
            return None
        self.seen = MC_LOAD(self.tasks.tasks.alarms)
        return self.seen

    def take(self):
        """As the collector thread: whether the turn is free, and now its own."""
        if self.holder is not None:
            return False
        self.holder = COLLECTOR
        self.collector = get_ident()
        return True

    def give(self):
        """As the collector thread: its turn is over."""
        if self.is_mine():
            self.holder = None

    cdef bint is_mine(self) except -1:
        return self.holder is not None and (self.collector if self.holder is COLLECTOR else self.holder) == get_ident()

    def abandon(self):
        """If this thread has the turn, give it up at once: it is about to do something else, who knows how long."""
        if self.is_mine():
            self.holder = None
            self.nested = 0
            MC_STORE(self.tasks.tasks.fg, 0)
            mc_alarm(self.tasks.tasks)

    @property
    def foreground(self):
        return self.holder is not None and self.holder is not COLLECTOR


cdef bint any_results(list rings) except -1:
    cdef ResultRing ring
    for ring in rings:
        if not mc_results_empty(ring.results):
            return True
    return False


cdef class Rings:
    """The addresses of several result rings, for waits without the interpreter lock."""

    cdef mc_results **pointers
    cdef list rings

    def __cinit__(self, list rings):
        cdef Py_ssize_t i, n = len(rings)
        cdef ResultRing ring
        self.rings = list(rings)  # keeps them alive while we wait
        self.pointers = <mc_results **>PyMem_Malloc((n + 1) * sizeof(mc_results *))
        if self.pointers == NULL:
            raise MemoryError
        for i in range(n):
            ring = self.rings[i]
            self.pointers[i] = ring.results
        self.pointers[n] = NULL

    def __dealloc__(self):
        PyMem_Free(self.pointers)


include "result_ring.pxi"
include "shield.pxi"
