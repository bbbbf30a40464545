# cython: language_level=3, boundscheck=False, wraparound=False
"""The task ring and the result ring: argument checks, the interpreter lock and errors over c/*.h."""

import threading

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.float cimport PyFloat_AS_DOUBLE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1

cdef extern from "<errno.h>":
    const int EINTR, ETIMEDOUT

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
    ctypedef struct mc_tasks:
        uint32_t slots
        mc_word fg
        mc_word bg
        uint64_t alarms
        mc_page *pages
    const int MC_WORKERS_MAX
    const int MC_SLOT_PAYLOAD
    const int64_t MC_NEVER
    int64_t mc_now_ns()
    bint mc_spin(mc_spinner *spinner, bint (*ready)(void *) noexcept nogil, void *context)
    void mc_slept(mc_spinner *spinner, int64_t since_ns)
    int mc_wait(mc_word *word, uint32_t expected, int64_t deadline_ns)
    size_t mc_tasks_bytes(uint32_t slots)
    void mc_tasks_init(mc_tasks *t, uint32_t slots)
    bint mc_tasks_valid(const mc_tasks *t, size_t nbytes)
    uint64_t mc_ready(mc_tasks *t)
    void mc_wake_worker(mc_tasks *t, unsigned worker)
    bint mc_wake_one(mc_tasks *t)
    int64_t mc_publish(mc_tasks *t, uint64_t task, uint32_t function, uint32_t flags, const void *head,
                       uint32_t head_length, const void *payload, uint32_t length)
    bint mc_holds(mc_tasks *t, uint64_t ticket)
    void mc_kick(mc_tasks *t)
    bint mc_withdraw(mc_tasks *t, uint64_t ticket)
    uint32_t mc_repair(mc_tasks *t, unsigned worker, uint64_t *tasks, uint32_t capacity)
    mc_slot *mc_claim(mc_tasks *t, unsigned worker)
    void mc_free(mc_slot *slot)
    int mc_worker_wait(mc_tasks *t, unsigned worker, mc_spinner *spinner, int64_t deadline_ns)
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
    ctypedef struct mc_results:
        uint64_t capacity
    void mc_results_init(mc_results *r, uint64_t capacity)
    bint mc_results_valid(const mc_results *r, size_t nbytes)
    bint mc_results_empty(const mc_results *r)
    uint64_t mc_results_used(mc_results *r)
    mc_record *mc_reserve(mc_results *r, uint32_t size)
    void mc_commit(mc_results *r, uint32_t size)
    int mc_wait_room(mc_results *r, uint32_t size)
    mc_record *mc_peek(mc_results *r, bint *broken)
    void mc_take(mc_results *r, uint32_t size)

cdef extern from *:
    """
    #define MC_LOAD(field) atomic_load(&(field))
    #define MC_STORE(field, value) atomic_store(&(field), (value))
    """
    uint64_t MC_LOAD(...) nogil
    void MC_STORE(...) nogil

cdef object get_ident = threading.get_ident
cdef object COLLECTOR = "collector"

WORKERS_MAX = MC_WORKERS_MAX
INLINE_BYTES = MC_SLOT_PAYLOAD      # the longest payload of a task that the ring holds itself
FRAGMENT_BYTES = 32768              # a longer payload of a result goes in records of this size

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

DECODING = 0xffffffffffffffff       # a page's item while the worker still unpickles the task
MORE = 1                            # flag of a record: the payload goes on in the next one


def now_ns():
    """CLOCK_MONOTONIC in nanoseconds, as the rings use it."""
    return mc_now_ns()


cdef int64_t NOTIFY_NS = 1000000    # between two times that a worker wakes the collector thread


cdef inline int64_t deadline_of(object deadline_ns) except? -1:
    return MC_NEVER if deadline_ns is None else <int64_t>deadline_ns


cdef class TaskRing:
    """One process publishes tasks, many workers claim them; the bell tells the publisher of results.

    Args:
        buffer: Writable shared memory of at least `TaskRing.nbytes(slots)` bytes.
        slots: How many tasks can be published at once, to create the ring; 0 to use one that exists.

    Raises:
        ValueError: The memory is too small, or holds no task ring of this version.

    Process-safety: publish, kick, withdraw, repair and the bell belong to one process, under a lock of its own;
    claim, begin, wait and notify to the workers. If a process dies: see c/task_ring.h.
    """

    cdef mc_tasks *tasks
    cdef mc_slot *slot
    cdef mc_spinner spinner
    cdef mc_spinner fg_spinner
    cdef int64_t notified_ns
    cdef object buffer
    cdef const uint8_t[::1] view

    def __cinit__(self, uint8_t[::1] buffer, uint32_t slots=0):
        self.tasks = <mc_tasks *>&buffer[0]
        if slots:
            if mc_tasks_bytes(slots) > <size_t>buffer.shape[0]:
                raise ValueError(f"a task ring of {slots} slots needs {mc_tasks_bytes(slots)} bytes, not {buffer.shape[0]}")
            mc_tasks_init(self.tasks, slots)
        elif not mc_tasks_valid(self.tasks, buffer.shape[0]):
            raise ValueError("this memory holds no task ring of this version of manycore")
        self.buffer = buffer

    @staticmethod
    def nbytes(uint32_t slots):
        """The bytes that a ring of `slots` slots takes."""
        return mc_tasks_bytes(slots)

    cdef mc_page *page(self, unsigned worker) except NULL:
        if worker >= MC_WORKERS_MAX:
            raise ValueError(f"worker {worker} is not below {MC_WORKERS_MAX}")
        return &self.tasks.pages[worker]

    # the parent

    def publish(self, uint64_t task, uint32_t function, uint32_t flags, bytes head, bytes payload):
        """Publish a task, its frame being `head + payload`, and wake a worker.

        Returns:
            Its ticket, or -1 when the ring is full.
        """
        cdef Py_ssize_t length = PyBytes_GET_SIZE(head) + PyBytes_GET_SIZE(payload)
        if length > MC_SLOT_PAYLOAD:
            raise ValueError(f"a task's frame is {length} bytes, more than the {MC_SLOT_PAYLOAD} of a slot")
        cdef int64_t ticket = mc_publish(
            self.tasks, task, function, flags, PyBytes_AS_STRING(head), <uint32_t>PyBytes_GET_SIZE(head),
            PyBytes_AS_STRING(payload), <uint32_t>PyBytes_GET_SIZE(payload),
        )
        if ticket >= 0:
            mc_kick(self.tasks)
        return ticket

    def holds(self, uint64_t ticket):
        """Whether a published task is still in its slot: not claimed, or being copied by the worker that claimed it."""
        return mc_holds(self.tasks, ticket)

    def ready(self):
        """Tasks that are published and not claimed."""
        return mc_ready(self.tasks)

    def kick(self):
        """Wake a worker if a task is ready; after a death, since the dead may have taken a wake-up along."""
        if mc_ready(self.tasks):
            mc_wake_one(self.tasks)

    def withdraw(self, uint64_t ticket):
        """Take a published task back; False when a worker has claimed it."""
        return mc_withdraw(self.tasks, ticket)

    def repair(self, unsigned worker):
        """Free what the dead worker claimed and never began; returns the ids of these tasks."""
        self.page(worker)
        cdef uint64_t[64] tasks
        cdef uint32_t found = mc_repair(self.tasks, worker, tasks, 64)
        return [tasks[i] for i in range(min(found, 64))]

    def reset(self, unsigned worker):
        """Clear the page of a worker that is gone, for its successor."""
        cdef mc_page *page = self.page(worker)
        MC_STORE(page.asleep, 0)
        MC_STORE(page.stop, 0)
        MC_STORE(page.task, 0)
        MC_STORE(page.item, 0)
        MC_STORE(page.started_ns, 0)
        MC_STORE(page.items_done, 0)
        MC_STORE(page.busy_ns, 0)

    def stop(self, unsigned worker):
        """Tell a worker to leave when no task is ready."""
        MC_STORE(self.page(worker).stop, 1)
        mc_wake_worker(self.tasks, worker)

    def status(self, unsigned worker):
        """What a worker does: (task or 0, item, started_ns, items_done, busy_ns)."""
        cdef mc_page *page = self.page(worker)
        return (MC_LOAD(page.task), MC_LOAD(page.item), <int64_t>MC_LOAD(page.started_ns), MC_LOAD(page.items_done),
                <int64_t>MC_LOAD(page.busy_ns))

    # the bell

    def alarms(self):
        """How many alarms there were; ask before looking for what they tell of, and hand it to the wait after."""
        return MC_LOAD(self.tasks.alarms)

    def wait(self, list rings, uint64_t alarms, object deadline_ns=None):
        """As the thread that entered: wait for a result in `rings`, an alarm after `alarms`, or the deadline (False)."""
        cdef int64_t deadline = deadline_of(deadline_ns)
        cdef Rings waiting = Rings(rings)
        cdef int e = 0
        cdef int64_t since_ns
        cdef mc_tasks *tasks = self.tasks
        with nogil:
            if not mc_spin(&self.fg_spinner, rings_ready, <void *>waiting.pointers):
                MC_STORE(tasks.fg, 2)
                if not rings_ready(<void *>waiting.pointers) and MC_LOAD(tasks.alarms) == alarms:
                    if mc_ready(tasks):
                        mc_wake_one(tasks)
                    since_ns = mc_now_ns()
                    e = mc_wait(&tasks.fg, 2, deadline)
                    mc_slept(&self.fg_spinner, since_ns)
                MC_STORE(tasks.fg, 1)
        if e == EINTR:
            PyErr_CheckSignals()
        return e != ETIMEDOUT

    def wait_background(self, list rings, uint64_t alarms, object deadline_ns=None):
        """As the collector thread: sleep until a result is there and nobody else collects, an alarm, or the deadline."""
        cdef int64_t deadline = deadline_of(deadline_ns)
        cdef Rings waiting = Rings(rings)
        cdef mc_tasks *tasks = self.tasks
        cdef int e = 0
        with nogil:
            MC_STORE(tasks.bg, 1)
            if (MC_LOAD(tasks.fg) != 0 or not rings_ready(<void *>waiting.pointers)) and MC_LOAD(tasks.alarms) == alarms:
                e = mc_wait(&tasks.bg, 1, deadline)
            MC_STORE(tasks.bg, 0)
        return e != ETIMEDOUT

    def alarm(self):
        """Wake whoever waits for results: something else has happened."""
        mc_alarm(self.tasks)

    # a worker

    def claim(self, unsigned worker):
        """Claim a task: (task, function, flags, payload), or None when none is ready.

        From here on the worker's page says that the task's code may have begun.
        """
        cdef mc_page *page = self.page(worker)
        cdef mc_slot *slot = mc_claim(self.tasks, worker)
        if slot == NULL:
            return None
        cdef uint32_t length = slot.length
        if length > <uint32_t>MC_SLOT_PAYLOAD:
            raise ValueError(f"the task ring is damaged: a payload of {length} bytes")
        claimed = (slot.task, slot.function, slot.flags, PyBytes_FromStringAndSize(<char *>slot.payload, length))
        MC_STORE(page.item, <uint64_t>0xffffffffffffffff)  # DECODING
        MC_STORE(page.started_ns, mc_now_ns())
        MC_STORE(page.task, slot.task)
        mc_free(slot)
        return claimed

    def begin(self, unsigned worker, uint64_t item):
        """The code of this item of the claimed task begins; returns now, in ns."""
        cdef mc_page *page = &self.tasks.pages[worker & (MC_WORKERS_MAX - 1)]
        cdef int64_t now = mc_now_ns()
        MC_STORE(page.started_ns, now)
        MC_STORE(page.item, item)
        return now

    def done(self, unsigned worker, int64_t took_ns, uint64_t items):
        """The claimed task is over and its results are in the result ring."""
        cdef mc_page *page = &self.tasks.pages[worker & (MC_WORKERS_MAX - 1)]
        MC_STORE(page.items_done, MC_LOAD(page.items_done) + items)
        MC_STORE(page.busy_ns, <int64_t>MC_LOAD(page.busy_ns) + took_ns)
        MC_STORE(page.task, 0)

    def wait_task(self, unsigned worker, object deadline_ns=None):
        """Wait until a task may be ready or `stop` is set; False at the deadline."""
        cdef int64_t deadline = deadline_of(deadline_ns)
        cdef int e
        self.page(worker)
        with nogil:
            e = mc_worker_wait(self.tasks, worker, &self.spinner, deadline)
        if e == EINTR:
            PyErr_CheckSignals()
        return e != ETIMEDOUT

    def stopped(self, unsigned worker):
        """Whether the parent wants this worker to leave."""
        return MC_LOAD(self.page(worker).stop) != 0

    def notify(self):
        """Results were put: tell a thread that waits for one; the collector thread at most once a millisecond."""
        cdef int64_t now = mc_now_ns()
        cdef bint urgent = now - self.notified_ns > NOTIFY_NS
        if urgent:
            self.notified_ns = now
        mc_notify(self.tasks, urgent)


cdef bint rings_ready(void *context) noexcept nogil:
    cdef mc_results **ring = <mc_results **>context
    while ring[0] != NULL:
        if not mc_results_empty(ring[0]):
            return True
        ring += 1
    return False


cdef class Turn:
    """Whose turn it is to read the result rings: one thread's at a time.

    `with turn as mine:` makes the thread the foreground, if nobody else has the turn; `take` and `give` are for the
    collector thread. Entering and leaving are single steps that a signal cannot come between.

    Args:
        tasks: Whose bell hears of it.

    Attributes:
        rings: The result rings; leaving looks at them, and wakes the collector for what is left.
        foreground: Whether a thread that waits for a result has the turn.
    """

    cdef TaskRing tasks
    cdef public list rings
    cdef object holder
    cdef uint64_t seen

    def __cinit__(self, TaskRing tasks):
        self.tasks = tasks
        self.rings = []
        self.holder = None

    def __enter__(self):
        if self.holder is not None:
            return False
        self.holder = get_ident()
        self.seen = MC_LOAD(self.tasks.tasks.alarms)
        MC_STORE(self.tasks.tasks.fg, 1)
        return True

    def __exit__(self, kind, error, traceback):
        if self.holder is None or self.holder is COLLECTOR or self.holder != get_ident():
            return
        self.holder = None
        MC_STORE(self.tasks.tasks.fg, 0)
        if kind is not None or MC_LOAD(self.tasks.tasks.alarms) != self.seen:
            mc_alarm(self.tasks.tasks)  # the collector may have heard it while it was not its turn
        elif any_results(self.rings):
            mc_ring_word(&self.tasks.tasks.bg, 1, 0)

    def alarms(self):
        """As `TaskRing.alarms`, for who has the turn: leaving tells the collector of any that came after this."""
        self.seen = MC_LOAD(self.tasks.tasks.alarms)
        return self.seen

    def take(self):
        """As the collector thread: whether the turn is free, and now its own."""
        if self.holder is not None:
            return False
        self.holder = COLLECTOR
        return True

    def give(self):
        """As the collector thread: its turn is over."""
        self.holder = None

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


class BrokenRing(Exception):
    """The bytes of a result ring are not what a worker's runtime writes."""


cdef class ResultRing:
    """Records of bytes from one worker to the parent.

    Args:
        buffer: Writable shared memory.
        create: Make an empty ring that fills the memory; otherwise use the one that is there.

    Raises:
        ValueError: The memory is too small, or holds no result ring of this version.
    """

    cdef mc_results *results
    cdef object buffer
    cdef TaskRing bell

    def __cinit__(self, uint8_t[::1] buffer, bint create=False, TaskRing bell=None):
        cdef uint64_t capacity = 4096
        self.results = <mc_results *>&buffer[0]
        self.bell = bell
        if create:
            if <size_t>buffer.shape[0] < sizeof(mc_results) + 4096:
                raise ValueError(f"a result ring needs more than {buffer.shape[0]} bytes")
            while capacity * 2 <= <uint64_t>buffer.shape[0] - sizeof(mc_results):
                capacity *= 2
            mc_results_init(self.results, capacity)
        elif not mc_results_valid(self.results, buffer.shape[0]):
            raise ValueError("this memory holds no result ring of this version of manycore")
        self.buffer = buffer

    cdef mc_record *reserve(self, uint32_t length) except NULL:
        cdef uint32_t size = (<uint32_t>sizeof(mc_record) + length + 7) & ~<uint32_t>7
        cdef mc_record *record = mc_reserve(self.results, size)
        cdef int e
        if size > self.results.capacity // 2:
            raise ValueError(f"a record of {length} bytes does not fit the result ring")
        while record == NULL:
            if self.bell is not None:
                mc_notify(self.bell.tasks, True)
            with nogil:
                e = mc_wait_room(self.results, size)
            if e == EINTR:
                PyErr_CheckSignals()
            record = mc_reserve(self.results, size)
        record.size = size
        record.length = length
        return record

    cdef int write(self, uint64_t task, uint64_t item, uint8_t status, uint8_t kind, uint16_t flags, int64_t took_ns,
                   const void *payload, uint32_t length) except -1:
        cdef mc_record *record = self.reserve(length)
        record.status = status
        record.kind = kind
        record.flags = flags
        record.task = task
        record.item = item
        record.took_ns = took_ns
        memcpy(<uint8_t *>record + sizeof(mc_record), payload, length)
        mc_commit(self.results, record.size)
        return 0

    def put(self, uint64_t task, uint64_t item, uint8_t status, int64_t took_ns, bytes payload, uint16_t flags=0):
        """Append a record; a payload longer than FRAGMENT_BYTES goes in several. Waits while the ring is full."""
        cdef const char *at = PyBytes_AS_STRING(payload)
        cdef Py_ssize_t left = PyBytes_GET_SIZE(payload)
        cdef Py_ssize_t most = FRAGMENT_BYTES
        while left > most:
            self.write(task, item, status, KIND_PICKLE, flags | MORE, took_ns, at, <uint32_t>most)
            at += most
            left -= most
        self.write(task, item, status, KIND_PICKLE, flags, took_ns, at, <uint32_t>left)

    cpdef bint put_plain(self, uint64_t task, uint64_t item, int64_t took_ns, object value) except -1:
        """Append a result that needs no pickling (None, bool, int, float, short str or bytes); False for any other."""
        cdef int64_t number
        cdef double real
        cdef int overflow = 0
        cdef const char *text
        cdef Py_ssize_t length
        kind = type(value)
        if value is None:
            self.write(task, item, 0, KIND_NONE, 0, took_ns, NULL, 0)
        elif kind is int:
            number = PyLong_AsLongLongAndOverflow(value, &overflow)
            if overflow:
                return False
            self.write(task, item, 0, KIND_INT, 0, took_ns, &number, 8)
        elif kind is float:
            real = PyFloat_AS_DOUBLE(value)
            self.write(task, item, 0, KIND_FLOAT, 0, took_ns, &real, 8)
        elif value is True:
            self.write(task, item, 0, KIND_TRUE, 0, took_ns, NULL, 0)
        elif value is False:
            self.write(task, item, 0, KIND_FALSE, 0, took_ns, NULL, 0)
        elif kind is str:
            if len(value) > 4096:
                return False
            try:
                text = PyUnicode_AsUTF8AndSize(value, &length)
            except UnicodeEncodeError:  # lone surrogates
                return False
            self.write(task, item, 0, KIND_STR, 0, took_ns, text, <uint32_t>length)
        elif kind is bytes and PyBytes_GET_SIZE(value) <= 16384:
            self.write(task, item, 0, KIND_BYTES, 0, took_ns, PyBytes_AS_STRING(value), <uint32_t>PyBytes_GET_SIZE(value))
        else:
            return False
        return True

    def run(self, TaskRing tasks, unsigned worker, uint64_t task, Py_ssize_t first, function, list items, bint star,
            raised, pickled):
        """Run a chunk: begin, call, and put each item from `first` on.

        Args:
            tasks: Whose page of this worker names the item at each moment.
            worker: The worker's index.
            task: The chunk's task.
            first: The first item to run.
            function: Called with an item, or with `star` with the items of the item.
            items: The chunk.
            star: See above.
            raised: Called with (task, item, took_ns, error) for an item that raised; puts its record.
            pickled: Called with (task, item, took_ns, result) for a result that is not plain; puts its record.

        Returns:
            The time since the chunk began, in ns.
        """
        cdef mc_page *page = tasks.page(worker)
        cdef Py_ssize_t item, count = len(items)
        cdef int64_t begun = mc_now_ns(), started = begun, now
        MC_STORE(page.started_ns, started)
        MC_STORE(page.item, <uint64_t>first)
        for item in range(first, count):
            try:
                result = function(*items[item]) if star else function(items[item])
            except BaseException as error:  # also SystemExit: it is the item that ends, not the worker
                now = mc_now_ns()
                raised(task, item, now - started, error)
            else:
                now = mc_now_ns()
                if not self.put_plain(task, item, now - started, result):
                    pickled(task, item, now - started, result)
                    now = mc_now_ns()
            started = now
            MC_STORE(page.started_ns, now)
            MC_STORE(page.item, <uint64_t>(item + 1))
            if now - tasks.notified_ns > NOTIFY_NS:
                tasks.notify()
        return mc_now_ns() - begun

    def used(self):
        """Bytes that wait for the parent."""
        return mc_results_used(self.results)

    def crowded(self):
        """Whether the ring is more than half full, so that the parent should come soon."""
        return mc_results_used(self.results) > self.results.capacity // 2

    def empty(self):
        """Whether nothing waits."""
        return mc_results_empty(self.results)

    def take(self, list records, Py_ssize_t most=4096):
        """Append what waits to `records`, at most `most` of it; returns how many records were read.

        An entry is (task, item, status, took_ns, plain, flags, value). Where `plain` is true, `value` is a list of the
        results of this task's items from `item` on, which came one after the other, and took_ns is their sum; where
        it is false, `value` is the bytes of one pickle, or of a part of it (flag MORE).

        Raises:
            BrokenRing: Something else than a worker's runtime has written into the ring.
        """
        cdef mc_record *record
        cdef bint broken = False
        cdef Py_ssize_t taken = 0
        cdef uint32_t size, length
        cdef const char *payload
        cdef uint8_t kind
        cdef list run = None
        cdef uint64_t run_task = 0, run_first = 0, run_next = 0
        cdef int64_t run_took = 0
        while taken < most:
            record = mc_peek(self.results, &broken)
            if record == NULL:
                break
            size = record.size
            length = record.length
            kind = record.kind
            payload = <const char *>record + sizeof(mc_record)
            if kind > KIND_LAST or length > size - sizeof(mc_record) or (
                (kind == KIND_INT or kind == KIND_FLOAT) and length != 8
            ):
                broken = True
                break
            if kind == KIND_PICKLE or kind == KIND_BYTES:
                value = PyBytes_FromStringAndSize(payload, length)
            elif kind == KIND_NONE:
                value = None
            elif kind == KIND_INT:
                value = (<int64_t *>payload)[0]
            elif kind == KIND_FLOAT:
                value = (<double *>payload)[0]
            elif kind == KIND_STR:
                value = PyUnicode_DecodeUTF8(payload, length, NULL)
            else:
                value = kind == KIND_TRUE
            if run is not None and (kind == KIND_PICKLE or record.task != run_task or record.item != run_next):
                records.append((run_task, run_first, 0, run_took, True, 0, run))
                run = None
            if kind == KIND_PICKLE:
                records.append((record.task, record.item, record.status, record.took_ns, False, record.flags, value))
            elif run is None:
                run = [value]
                run_task = record.task
                run_first = record.item
                run_next = record.item + 1
                run_took = record.took_ns
            else:
                run.append(value)
                run_next += 1
                run_took += record.took_ns
            mc_take(self.results, size)
            taken += 1
        if run is not None:
            records.append((run_task, run_first, 0, run_took, True, 0, run))
        if broken:
            raise BrokenRing("a record of a result ring cannot be: its worker's memory is damaged")
        return taken
