# cython: language_level=3, boundscheck=False, wraparound=False
"""What each call passes through, compiled: tasks, the state of futures, the way out and the way back of plain calls.

    Line.call     arguments -> packed -> Task -> into the task ring, or behind those that wait
    settle        results that need no pickle, at the head of a worker's ring -> their futures
    Call          the state of a future: what `result()` reads when it is there

A call is plain when it has no policy, its arguments are packed (`_native/codec.pack`) into a slot's room or one block
of the arena, and nothing in the queue has a priority. A result is settled here when it belongs to such a call, and its future has no condition,
which it has once somebody waits for it in another way than `result()`, or wants to be called back. All else takes the
way through `outbox.py`, `dispatch.py`, `settlement.py` and `future.py`, which is right for everything: nothing here
decides what these would decide otherwise, and what is here can be taken out.

Invariants:
    as in `dispatch.py`, whose books (`Book`) these are; `tests/property/test_calls.py` plays both ways side by side
    no Python code runs between two steps of a change: neither a signal's handler nor another thread comes between
    what a settled call held (its arguments, its pool) is dropped by the caller, outside the engine's lock
If a process dies: nothing is kept here that `dispatch.py` does not see.
"""

from sys import intern
from types import BuiltinFunctionType, FunctionType

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_DelItem, PyDict_GetItem, PyDict_SetItem
from cpython.list cimport PyList_Append
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
cimport cython

from manycore._native.step cimport Mutex, look_free


from manycore._engine.cargo import Manifest
from manycore._engine.frames import HEADER, OK, PACKED
from manycore._engine.task import TaskState
from manycore._native.codec import pack
from manycore._native.ring import INLINE_BYTES, SHIELD

cdef extern from "<stdbool.h>":
    ctypedef int c_bool "bool"

cdef extern from "task_ring.h" nogil:
    ctypedef struct mc_tasks:
        pass
    int64_t mc_publish(mc_tasks *t, uint64_t task, uint32_t function, uint32_t flags, const void *head,
                       uint32_t head_length, const void *payload, uint32_t length)
    void mc_kick(mc_tasks *t)

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
        pass
    mc_record *mc_peek(mc_results *r, c_bool *broken)
    void mc_take(mc_results *r, uint32_t size)

cdef enum:  # as in `ring.pyx`
    KIND_PICKLE = 0
    KIND_NONE = 1
    KIND_TRUE = 2
    KIND_FALSE = 3
    KIND_INT = 4
    KIND_FLOAT = 5
    KIND_STR = 6
    KIND_BYTES = 7

# The very objects that `concurrent.futures` has, which is imported later: names in a program's text are interned.
cdef object _PENDING = intern("PENDING")
cdef object _FINISHED = intern("FINISHED")
cdef object _CANCELLED = intern("CANCELLED")
cdef object _NOTIFIED = intern("CANCELLED_AND_NOTIFIED")
cdef object _NEW = TaskState.NEW
cdef object _QUEUED = TaskState.QUEUED
cdef object _PUBLISHED = TaskState.PUBLISHED
cdef object _DONE = TaskState.DONE
cdef object _pack = pack
cdef object _SHIELD = SHIELD
cdef type _MANIFEST = Manifest
cdef type _FUNCTION = FunctionType
cdef type _BUILTIN = BuiltinFunctionType
cdef uint8_t _OK = OK
cdef uint32_t _PACKED = PACKED
cdef Py_ssize_t _ROOM = INLINE_BYTES - HEADER.size  # for a payload in a slot


@cython.freelist(256)
cdef class Task:
    """One frame: a call, or a chunk of a map.

    Args:
        sink: Who wants the results; the dispatcher only hands it back.
        function: What names the function to a worker; opaque here.
        payload: The encoded arguments.
        count: How many items the frame holds; 1 for a call.
        chunk: Whether the payload is a list of items.
        policy: What its items are promised; None for those without options.
        once: Whether only one worker can read the payload, because it then owns the memory: where another task could
            be published again, this one is split, which encodes its items anew.
        nbytes: The size of the payload.

    Attributes:
        received: Items whose results are here; the next one is the only one that may be running.
        past: What the item at `received` has been through.
    """

    cdef public object sink, function, payload, policy, past, state
    cdef public uint64_t id
    cdef public int64_t ticket
    cdef public Py_ssize_t count, received, nbytes
    cdef public bint chunk, once

    def __cinit__(self):
        self.ticket = -1
        self.count = 1
        self.state = _NEW

    def __init__(self, sink, function, payload, *, Py_ssize_t count=1, bint chunk=False, policy=None, bint once=False,
                 Py_ssize_t nbytes=0):
        self.sink = sink
        self.function = function
        self.payload = payload
        self.count = count
        self.chunk = chunk
        self.policy = policy
        self.once = once
        self.nbytes = nbytes


cdef class Call:
    """The state of a future, and `result()` of one that is done.

    Args:
        owner: The engine that runs the call; None for who resolves it by hand.
    """

    cdef public object _state, _result, _exception, _cond, _waiting, _callbacks, _owner, _task, _arguments, _raw, _keeper

    def __init__(self, owner=None):
        self._state = _PENDING
        self._owner = owner

    cdef bint over(self):
        return self._state is _FINISHED or self._state is _NOTIFIED or self._state is _CANCELLED

    def done(self):
        """Whether the call is over: with a result, an exception, or cancelled."""
        return self.over()

    def result(self, timeout=None):
        """What the call returned; its exception is raised here, with the worker's traceback as its cause.

        Args:
            timeout: Seconds to wait at the most; None waits as long as it takes.

        Raises:
            TimeoutError: It was not done in time. It goes on.
            concurrent.futures.CancelledError: It was cancelled.
            manycore.WorkerDied: Its worker died.
        """
        if self._state is _FINISHED and self._raw is None and self._exception is None:
            return self._result
        return self._outcome(timeout)

    # Steps that nothing comes between

    def _share(self, condition):
        """The condition: this one, unless there is one already."""
        if self._cond is None:
            self._cond = condition
        return self._cond

    def _settle(self, object state, object result, object exception, object raw, bint guarded):
        """Move to a final state; returns whether that was done.

        Args:
            state: The state.
            result, exception, raw: What `result()` gives, raises, or has to decode first.
            guarded: Whether the caller holds the condition. If not, nothing is done where there is one: None.
        """
        cdef object arguments, keeper, task
        if not guarded and self._cond is not None:
            return None
        if self.over():
            return False
        arguments, keeper, task = self._arguments, self._keeper, self._task  # dropped when all is done
        self._result = result
        self._exception = exception
        self._raw = raw
        self._state = state
        self._task = self._arguments = self._keeper = None
        return True

    def _decoded(self, raw, result, exception):
        """What `raw` was found to be, unless another thread was first."""
        if self._raw is raw:
            self._result = result
            self._exception = exception
            self._raw = None


cdef class Book:
    """The tasks of a dispatcher that are not done, and what decides whether a call is plain."""

    cdef public dict _tasks
    cdef public uint64_t _next_id
    cdef public Py_ssize_t ranked
    cdef public object _backlog

    cdef int enter(self, Task task) except -1:
        """Give it an id; it is in the queue, or about to be."""
        task.id = self._next_id
        PyDict_SetItem(self._tasks, task.id, task)
        self._next_id += 1
        task.state = _QUEUED
        return 0


cdef class Line:
    """An engine's way out for calls.

    Attributes:
        plain_bytes: Of all frames that went out this way.
    """

    cdef mc_tasks *_ring
    cdef object _ring_owner
    cdef Book _book
    cdef object _functions, _outbox
    cdef dict _known
    cdef public Mutex _lock
    cdef public bint _closed, _unmanned
    cdef readonly uint64_t plain_bytes

    def _wire(self, ring, Book book, outbox):
        """Use this task ring, these books and what sends the rest."""
        functions = outbox.functions
        self._ring = <mc_tasks *><uintptr_t>ring.address()
        self._ring_owner = ring
        self._book = book
        self._functions = functions
        self._outbox = outbox
        self._known = functions.known

    cdef object _entry(self, object function):
        cdef PyObject *known
        if type(function) is _FUNCTION or type(function) is _BUILTIN:
            known = PyDict_GetItem(self._known, function)
            if known != NULL:
                return <object>known
            last = self._functions.last_by_value
            if last is not None and (<tuple>last)[0](function):
                return (<tuple>last)[1]
        return self._functions.get(function)

    cdef int64_t _post(self, Task task) except -2:
        """Publish a queued plain call; returns its ticket, -1 when the ring is full."""
        cdef bytes head = task.function.head
        cdef bint packed = type(task.payload) is _MANIFEST
        cdef bytes payload = task.payload.data if packed else task.payload
        cdef int64_t ticket = mc_publish(
            self._ring, task.id, 0, _PACKED if packed else 0, PyBytes_AS_STRING(head), <uint32_t>PyBytes_GET_SIZE(head),
            PyBytes_AS_STRING(payload), <uint32_t>PyBytes_GET_SIZE(payload),
        )
        if ticket >= 0:
            task.ticket = ticket
            task.state = _PUBLISHED
            self.plain_bytes += PyBytes_GET_SIZE(head) + PyBytes_GET_SIZE(payload) + (task.nbytes if packed else 0)
            mc_kick(self._ring)
        return ticket

    def pump(self):
        """Publish from the backlog while there is room. Under the engine's lock."""
        cdef Task task
        cdef object plain
        backlog = self._book._backlog
        if not self._book.ranked and not backlog.ranked:
            plain = backlog.plain
            while plain:
                task = plain[0]
                if task.state is _QUEUED:
                    if task.chunk or task.received or task.policy is not None or not (
                        type(task.payload) is bytes
                        or type(task.payload) is _MANIFEST and PyBytes_GET_SIZE(task.payload.data) <= _ROOM
                    ):
                        break
                    if self._post(task) < 0:
                        return
                plain.popleft()
            else:
                return
        with _SHIELD:
            self._outbox.pump(self._book)

    def call(self, Call future, function, tuple args, dict kwargs, policy=None):
        """Encode and submit one call; `future` gets the result.

        Raises:
            TypeError: The function is not callable.
            TaskPicklingError: The function or an argument cannot be pickled.
            PoolClosed, PoolBroken: As `submit`.
            RuntimeError: This thread is in the middle of a step.
        """
        cdef Task task
        cdef bint plain
        look_free()
        if self._closed:
            self.check_open()
        entry = self._entry(function)
        arguments = (args, kwargs)
        payload = _pack(arguments)
        cargo = payload
        if policy is None and payload is not None and PyBytes_GET_SIZE(payload) > _ROOM:
            cargo = self._outbox.load(payload)  # in a block of the arena; None when there is no room
        if policy is not None or cargo is None:
            self._call_at_length(future, entry, arguments, payload, policy)
            return
        task = Task.__new__(Task)
        task.sink = future
        task.function = entry
        task.payload = cargo
        task.nbytes = PyBytes_GET_SIZE(payload)
        future._task = task
        if cargo is payload:  # short: not worth much memory
            future._arguments = arguments
        else:
            task.once = True
        self._lock.take()
        try:
            if self._closed:
                self.check_open()
            plain = not self._book.ranked
            if plain:
                self._book.enter(task)
                backlog = self._book._backlog
                waiting = backlog.plain
                if backlog.ranked or waiting:
                    waiting.append(task)
                    self.pump()
                elif self._post(task) < 0:
                    waiting.append(task)
        finally:
            self._lock.give()
        if not plain:
            self.submit(task)
        elif self._unmanned:
            self._man()


def settle(Book book, ring, Py_ssize_t worker, list litter):
    """Settle the results at the head of a worker's ring, as far as they are of plain calls. Under the engine's lock.

    Args:
        book: Whose calls.
        ring: The worker's result ring.
        worker: The worker's index.
        litter: Gets what is to be dropped without the lock.

    Returns:
        (how many, time that they took in the worker, in ns).
    """
    cdef mc_results *results = <mc_results *><uintptr_t>ring.address()
    cdef mc_record *record
    cdef const char *payload
    cdef c_bool broken = False
    cdef Py_ssize_t done = 0
    cdef int64_t took_ns = 0
    cdef uint64_t nbytes = 0
    cdef PyObject *found
    cdef Task task
    cdef Call call
    cdef uint8_t kind
    while True:
        record = mc_peek(results, &broken)
        if record == NULL:
            break
        kind = record.kind
        if record.size < sizeof(mc_record):  # a short one, of a chunk
            break
        if kind == KIND_PICKLE and (record.flags or record.status != _OK):
            break
        key = record.task
        found = PyDict_GetItem(book._tasks, key)
        if found == NULL:
            break
        task = <Task>found
        if task.chunk or task.policy is not None or task.state is not _PUBLISHED or not isinstance(task.sink, Call):
            break
        call = <Call>task.sink
        if call._cond is not None or call._state is not _PENDING or record.item:
            break
        if record.length > record.size - sizeof(mc_record) or kind > KIND_BYTES or (
            (kind == KIND_INT or kind == KIND_FLOAT) and record.length != 8
        ):
            break  # a damaged ring: who reads all sees it too
        payload = <const char *>record + sizeof(mc_record)
        raw = None
        value = None
        if kind == KIND_PICKLE:
            data = PyBytes_FromStringAndSize(payload, record.length)
            raw = (OK, data, (task.id, task.policy, task.function, call._arguments, worker))
        elif kind == KIND_INT:
            value = (<int64_t *>payload)[0]
        elif kind == KIND_FLOAT:
            value = (<double *>payload)[0]
        elif kind == KIND_STR:
            value = PyUnicode_DecodeUTF8(payload, record.length, NULL)
        elif kind == KIND_BYTES:
            value = PyBytes_FromStringAndSize(payload, record.length)
        elif kind != KIND_NONE:
            value = kind == KIND_TRUE
        took_ns += record.took_ns
        nbytes += record.length
        mc_take(results, record.size)
        PyList_Append(litter, task)
        if call._keeper is not None:
            PyList_Append(litter, call._keeper)
            call._keeper = None
        PyList_Append(litter, call._arguments)
        call._arguments = None
        call._task = None
        PyDict_DelItem(book._tasks, key)
        task.state = _DONE
        task.ticket = -1
        task.received = 1
        call._result = value
        call._raw = raw
        call._state = _FINISHED
        done += 1
    if done:
        ring.taken_bytes += nbytes
    return done, took_ns
