# cython: language_level=3
"""The children of a zygote: forked, noted, reaped and reported without an object of Python's being touched (brood.h).

And of its memory, what may be put into a file so that children copy it at half the cost (image.h).
"""

import os
import types

from cpython.object cimport PyTypeObject
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from posix.unistd cimport close, fork

cdef extern from "Python.h":
    ctypedef enum PyMemAllocatorDomain:
        PYMEM_DOMAIN_RAW
        PYMEM_DOMAIN_OBJ
    ctypedef struct PyMemAllocatorEx:
        void *ctx
        void *malloc
    void PyMem_GetAllocator(PyMemAllocatorDomain domain, PyMemAllocatorEx *allocator)
    PyTypeObject PyType_Type
    PyTypeObject *type_of "Py_TYPE"(object value)
    int PyErr_CheckSignals() except -1
    void PyOS_BeforeFork()
    void PyOS_AfterFork_Parent()
    void PyOS_AfterFork_Child()

cdef extern from "errno.h":
    int errno
    int EDEADLK

cdef extern from "child.h":
    void mc_populate(const unsigned long *runs, size_t count)

cdef extern from "image.h":
    enum:
        MC_POOL_BYTES
        MC_ARENA_BYTES
        MC_GC_HEAD_BYTES
    struct mc_pool:
        uint32_t arena
    int mc_image(const unsigned long *runs, size_t count)
    uintptr_t mc_heap_end()
    const mc_pool *mc_pool_of(const void *object, size_t size)

cdef extern from "brood.h":
    int64_t MC_NEVER
    int PLACES "MC_PLACES"
    int OTHERS "MC_OTHERS"

    enum mc_event:
        MC_TIME
        MC_READY
        MC_WORDS
        MC_SPARE
        MC_SIGNAL

    struct mc_child:
        uint64_t launch_id
        int stack
        bint linger
        bint owns_group

    struct mc_place:
        int pid
        int end
        int pen

    struct mc_brood:
        mc_child *children
        size_t count
        mc_place places[2]
        void *unsent
        int64_t due
        int wanted
        int image
        int lifeline
        int wake
        int said
        int others[3]
        int found

    mc_brood *mc_brood_new()
    int mc_brood_listen(mc_brood *brood, int wake_write)
    mc_child *mc_brood_find(mc_brood *brood, int pid)
    void mc_brood_flush(mc_brood *brood)
    int mc_brood_tell(mc_brood *brood, const void *record, size_t size)
    void mc_brood_drop(mc_brood *brood)
    void mc_brood_renew(mc_brood *brood, uint64_t generation)
    int mc_brood_place(mc_brood *brood)
    bint mc_brood_may_take(mc_brood *brood)
    void mc_brood_note(mc_brood *brood)
    int mc_thread_count()
    int mc_brood_open(mc_brood *brood, int *lifeline, int *stack)
    void mc_brood_enter(mc_brood *brood, int pid, int place, int lifeline, int stack)
    void mc_brood_ask(mc_brood *brood, int pid, uint64_t launch_id, bint linger)
    void mc_brood_bury(mc_brood *brood, int pid)
    int mc_brood_reap(mc_brood *brood)
    void mc_brood_kill(mc_brood *brood, bint all)
    mc_event mc_brood_wait(mc_brood *brood, int64_t until) nogil

cdef enum:
    RUN_BYTES = 16  # an address and a number of bytes
    STEADY_AFTER = 3  # spares in a row; four times as many with each time, as it holds up the next, and one more
    STEADY_BYTES = 4194304  # for each of these that were put into a file last: they are kept while a child lives that has them
    MOST_STEADY = 1000000
    MOST_SMALL = 512  # bytes of what the interpreter's own allocator lays down; the larger are the C library's

TIME, READY, WORDS, UNPREPARED, STEADY, BORN = range(6)  # what `Brood.wait` comes back with


def populate(runs: bytes) -> None:
    """Have the kernel copy pages now that are otherwise copied one by one as they are first written to.

    `runs` holds the address and the bytes of each run of pages, as unsigned integers of 8 bytes.
    """
    mc_populate(<const unsigned long *><const char *>runs, len(runs) // RUN_BYTES)


def arenas(objects: list) -> list:
    """Where the interpreter's small objects lie.

    Args:
        objects: Of those that the garbage collector knows, as many as there are.

    Returns:
        A pair for each arena of its allocator in which one of them was found: from the first to the last pool of one. Empty
        if an object is not as that allocator would have laid it down: then it is another one.
    """
    cdef PyMemAllocatorEx small, large
    cdef const mc_pool *pool
    cdef size_t size
    cdef dict found = {}
    PyMem_GetAllocator(PYMEM_DOMAIN_OBJ, &small)
    PyMem_GetAllocator(PYMEM_DOMAIN_RAW, &large)
    if small.ctx != NULL or small.malloc == large.malloc:  # what checks or traces stands before it; it is not used
        return []
    for value in objects:
        if type(value) is not dict and type(value) is not tuple and type(value) is not types.FunctionType:
            continue  # the size of others is not known from their type alone
        size = MC_GC_HEAD_BYTES + type_of(value).tp_basicsize
        if type(value) is tuple:
            size += len(value) * type_of(value).tp_itemsize
        if size > MOST_SMALL:
            continue
        pool = mc_pool_of(<void *>value, size)
        if pool == NULL:
            return []
        start, end = found.get(pool.arena, (<uintptr_t>pool, 0))
        found[pool.arena] = min(start, <uintptr_t>pool), max(end, <uintptr_t>pool + MC_POOL_BYTES)
    if any(end - start > MC_ARENA_BYTES for start, end in found.values()):
        return []
    return list(found.values())


def put_in_file(runs: bytes) -> None:
    """Put memory into a file that is mapped in its place: runs of whole pages, as of `populate` (image.h).

    Raises:
        OSError: It could not be: no memory, or nothing is mapped there. Nothing was changed.
    """
    if mc_image(<const unsigned long *><const char *>runs, len(runs) // RUN_BYTES) != 0:
        raise OSError(errno, os.strerror(errno))


def heap_end() -> int:
    """Where the heap of brk(2) ends; 0 if it is not the C library's own malloc that has it."""
    return mc_heap_end()


def static_data() -> int:
    """An address in the interpreter's static data."""
    return <uintptr_t>&PyType_Type


cdef class Brood:
    """See brood.h. A zygote has one.

    Args:
        others: What the caller serves when it is ready to read: the socket to the parent first, 3 at most.
        lifeline: The read end of the children's lifeline.
        wake: The two ends of a pipe: a byte comes with each signal, its number (`signal.set_wakeup_fd`).
        said: Where spares write that they take a request: pid, launch id, whether it may linger, as 3 integers of 8 bytes.
        places: For each place of a spare both ends of its socket: the spare's, the parent's.

    Attributes:
        prepared: Whether spares may be forked; while it is false, `wait` comes back for each with UNPREPARED.
        lifeline, stack: In a child, and of it: its open file of the lifeline, and the memfd for its last words.
    """

    cdef mc_brood *brood
    cdef public bint prepared
    cdef readonly int lifeline, stack
    cdef int wake_write
    cdef bytes pages  # that children write to
    cdef bytes memory  # to be put into a file
    cdef bint is_new  # the same, and it has not been
    cdef int steady_after  # as many spares in a row
    cdef bint is_bare  # forks call no hooks in this process
    cdef bint would_take  # whether the caller is to be told when that would pay

    def __init__(self, others, int lifeline, wake, int said, places):
        cdef int i
        self.brood = mc_brood_new()
        if self.brood == NULL:
            raise MemoryError
        if not 1 <= len(others) <= OTHERS or len(places) != PLACES:
            raise ValueError("others or places")
        for i in range(OTHERS):
            self.brood.others[i] = others[i] if i < len(others) else -1
        for i, (end, pen) in enumerate(places):
            self.brood.places[i].end = end
            self.brood.places[i].pen = pen
        self.brood.lifeline = lifeline
        self.brood.wake, self.wake_write = wake
        self.brood.said = said
        self.brood.wanted = 1
        self.pages = self.memory = b""
        self.steady_after = STEADY_AFTER
        self.listen()

    def listen(self) -> None:
        """Have SIGCHLD wake `wait`, whatever handler it has been given since; it looks for children that have ended until then."""
        if mc_brood_listen(self.brood, self.wake_write) != 0:
            raise OSError(errno, "sigaction")

    def wait(self, until=None) -> tuple:
        """Do what is to be done for the children, until something is left to the caller.

        Args:
            until: When to come back at the latest, in ns as `time.monotonic_ns`; None: not for a time.

        Returns:
            (TIME, 0), (READY, the descriptor), (WORDS, the pid of a child that ended and left something to be read),
            (UNPREPARED, 0), (STEADY, 0): spares follow one another, and nothing else happens, so that `take_image` would
            pay, or, in a new spare, (BORN, its place).

        Raises:
            BaseException: What a handler of another signal than SIGCHLD raises.
        """
        cdef int64_t end = MC_NEVER if until is None else until
        cdef mc_event event
        cdef int place, made = 0
        if self.is_new and mc_thread_count() == 1:  # now: once the caller, or a handler, has run, other things may lie there
            made = self.steady_after + 1
            if mc_image(<const unsigned long *><const char *>self.memory, len(self.memory) // RUN_BYTES) == 0:
                self.brood.image += 1
        self.is_new = False
        while True:
            if mc_thread_count() == 1:  # the lock is let go for nobody: that would write to pages
                event = mc_brood_wait(self.brood, end)
            else:
                with nogil:
                    event = mc_brood_wait(self.brood, end)
            if event == MC_SIGNAL:
                PyErr_CheckSignals()
                continue
            if event == MC_TIME:
                return TIME, 0
            if event == MC_READY:
                return READY, self.brood.found
            if event == MC_WORDS:
                return WORDS, self.brood.found
            if not self.prepared:
                return UNPREPARED, 0
            if made == self.steady_after and self.would_take and mc_brood_may_take(self.brood):
                return STEADY, 0
            self.brood.due = 0
            place = mc_brood_place(self.brood)
            if place < 0 or mc_thread_count() > 1:
                continue
            made += 1
            if self.child(place) == 0:  # what fails, the next launch says
                return BORN, place

    def fork(self) -> int:
        """Fork a child that the parent has asked for.

        Returns:
            Its pid; 0 in the child.

        Raises:
            OSError: There is no room for it, or with EDEADLK: this process has threads, which a fork does not copy.
        """
        cdef int pid
        if mc_thread_count() > 1:
            raise OSError(EDEADLK, "threads")
        pid = self.child(-1)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid

    cdef int child(self, int place):
        """Fork; returns minus an errno, the pid, or 0 in the child, which then has copies of the pages that it will write to."""
        cdef int pid, lifeline = -1, stack = -1, error
        cdef const char *runs = self.pages
        cdef size_t count = len(self.pages) // RUN_BYTES
        if mc_brood_open(self.brood, &lifeline, &stack) != 0:
            return -errno
        if not self.is_bare:
            PyOS_BeforeFork()
        pid = fork()
        error = errno
        if pid == 0:
            mc_populate(<const unsigned long *>runs, count)
            if self.is_bare:  # here, as the zygote would write to its memory; it has no other thread
                PyOS_BeforeFork()
            PyOS_AfterFork_Child()
            self.lifeline = lifeline
            self.stack = stack
            return 0
        if not self.is_bare:
            PyOS_AfterFork_Parent()
        if pid < 0:
            close(lifeline)
            close(stack)
            return -error
        mc_brood_enter(self.brood, pid, place, lifeline, stack)
        return pid

    def launched(self, int pid, uint64_t launch_id, bint linger) -> None:
        """Note for which launch a child was forked, and whether it may outlive the parent by a moment."""
        mc_brood_ask(self.brood, pid, launch_id, linger)

    def give_pages(self, runs: bytes) -> None:
        """Have each child from now on `populate` these at once. Only where there are any, `take_image` pays."""
        self.pages = runs
        self.would_take = len(runs) > 0
        self.steady_after = STEADY_AFTER
        self.is_bare = False

    def take_image(self, runs: bytes) -> None:
        """`put_in_file` these as `wait` is called, before it does anything; with none, ask no more.

        From then on forks call in the child what they would call here before (`os.register_at_fork`), and nothing here
        after, until other pages are given.
        """
        cdef const unsigned long *numbers = <const unsigned long *><const char *>runs
        cdef size_t size = 0
        for i in range(len(runs) // RUN_BYTES):
            size += numbers[2 * i + 1]
        self.steady_after = min(4 * self.steady_after + size // STEADY_BYTES, MOST_STEADY)
        self.memory = runs
        self.is_new = self.would_take = self.is_bare = len(runs) > 0

    def renew(self, uint64_t generation) -> None:
        """Have spares end that know less than the parent has told."""
        mc_brood_renew(self.brood, generation)

    def drop(self) -> None:
        """Have all spares end."""
        mc_brood_drop(self.brood)

    def has_spares(self) -> bool:
        """Whether there are spares, if only such as were told to end."""
        mc_brood_note(self.brood)
        return any(self.brood.places[i].pid != 0 for i in range(PLACES))

    def tell(self, record: bytes) -> None:
        """Send a record to the parent, after all that it was told before; kept here until there is room for it."""
        if mc_brood_tell(self.brood, <const char *>record, len(record)) != 0:
            raise MemoryError

    def is_telling(self) -> bool:
        """Whether records wait for room."""
        mc_brood_flush(self.brood)
        return self.brood.unsent != NULL

    def launch_of(self, int pid) -> int:
        """The launch that a child was forked for, or took; 0: it is a spare."""
        cdef mc_child *child = mc_brood_find(self.brood, pid)
        return 0 if child == NULL else child.launch_id

    def stack_of(self, int pid) -> int:
        """The memfd for a child's last words."""
        cdef mc_child *child = mc_brood_find(self.brood, pid)
        return -1 if child == NULL else child.stack

    def own_group(self, uint64_t launch_id) -> None:
        """Have a child's process group end with it, also when it exits by itself."""
        mc_brood_note(self.brood)
        for i in range(self.brood.count):
            if self.brood.children[i].launch_id == launch_id:
                self.brood.children[i].owns_group = True

    def reap(self) -> int:
        """Reap, and report, those that have ended.

        Returns:
            The pid of one that is not reaped, as it left something to be read; 0 if there is none left.
        """
        return mc_brood_reap(self.brood)

    def bury(self, int pid) -> None:
        """Reap and report one that has ended."""
        mc_brood_bury(self.brood, pid)

    def kill(self, bint all) -> None:
        """Have the groups of all children end, or of those that may not linger."""
        mc_brood_note(self.brood)
        mc_brood_kill(self.brood, all)

    def lingers(self) -> bool:
        """Whether a child is there that may linger."""
        return any(self.brood.children[i].linger for i in range(self.brood.count))
