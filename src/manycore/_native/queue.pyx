# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Queues of records in shared memory: the algorithm is `c/queue.h`; here are arguments, waiting and errors.

A record is an object in one of three forms:
    PACKED  a small value of plain builtin types, packed (`c/packed.h`): a quarter of what pickle takes for it
    BYTES   the bytes themselves
    CODED   what `_encode` gives: bytes, and buffers that are copied once on each side

`manycore.queues` makes the queues that people use of it, and says how other values are encoded.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.unistd cimport close

import os as _os
from queue import Empty, Full
from _pickle import dumps as _dumps
from _pickle import loads as _loads

cdef extern from "packed.h":
    object mc_pack(object value, bint arrays_only)
    object mc_unpack(const unsigned char *message, Py_ssize_t size)

cdef extern from "linger.h" nogil:
    bint mc_queue_may_grow(mc_queue *s, uint64_t size)
    bint mc_queue_linger(mc_queue_handle *q, uint64_t size)

DEF LARGE = 65536  # bytes whose copying is worth giving up the interpreter, about 5 us

cdef uint64_t CHECKED_BLOCKS = 512  # 16 MiB; looking costs some 50 us
cdef int64_t PATIENCE_NS = 100000000  # of who will not wait, for a lock that is held while a record is copied
cdef int EVERYBODY = 0x7fffffff


cdef int64_t deadline_of(bint block, object timeout) except -1:
    """Absolute, in ns; 0 is not to wait at all."""
    cdef double seconds
    if not block:
        return 0
    if timeout is None:
        return MC_NEVER
    seconds = timeout
    if seconds != seconds:
        raise ValueError("a timeout is a number of seconds, not nan")
    if seconds <= 0:
        return 0
    if seconds >= 9.0e9:
        return MC_NEVER
    return mc_now_ns() + <int64_t>(seconds * 1e9)


cdef object system_error(int error, str what):
    return OSError(error, f"{what}: {_os.strerror(error)}")


@cython.no_gc_clear
cdef class RecordQueue:
    """A queue over a descriptor, which it takes over."""

    def __cinit__(self, *args, **kwargs):
        self.handle.fd = -1

    def _open(self, int fd, object most, object shut_down_error, bint joinable=False):
        """Begin a new queue in the empty file, or use what is there.

        Args:
            fd: A descriptor, which is taken over.
            most: Items that it holds at most, 0 for any number; None to use what is there.
            shut_down_error: What is raised once it is shut down.
            joinable: Whether a new one keeps count of what is in whose hands.
        """
        cdef int error
        if self.handle.shared is not NULL:
            raise RuntimeError("this queue has its memory already")
        error = mc_queue_open(&self.handle, fd, -1 if most is None else most)
        if error:
            raise system_error(error, "cannot map a queue")
        if most is not None:
            self.handle.shared.work.kept = joinable
        self.shut_down_error = shut_down_error
        self.checked_blocks = CHECKED_BLOCKS
        self.told = mc_queue_lost(self.handle.shared)
        self.lingered = 0xffffffffffffffff

    def __dealloc__(self):
        mc_queue_close(&self.handle)
        if self.handle.fd >= 0:
            close(self.handle.fd)

    # Replaced by subclasses.

    def _require(self, size):
        """Raises OSError when the machine cannot give that many bytes."""

    def _encode(self, value):
        """The pieces of a value, the first of which is bytes that say how to join them."""
        return [_dumps(value, 5)]

    def _decode(self, data, buffers):
        """The value of pieces."""
        return _loads(data)

    cdef mc_queue *memory(self) except NULL:
        if self.handle.shared is NULL:
            raise RuntimeError(f"{type(self).__name__}.__init__ was not called")
        return self.handle.shared

    cdef tuple encode(self, object value):
        if type(value) is bytes:
            return BYTES, value
        data = mc_pack(value, False)
        if data is not None:
            return PACKED, data
        return CODED, self._encode(value)

    cdef object decode(self, tuple record):
        cdef int kind = record[0]
        if kind == BYTES:
            return record[1]
        if kind == PACKED:
            return mc_unpack(<const unsigned char *>PyBytes_AS_STRING(record[1]), PyBytes_GET_SIZE(record[1]))
        return self._decode(record[1], record[2])

    # Locks and waits

    cdef bint lock(self, mc_lock *lock, int64_t deadline_ns) except -1:
        cdef uint64_t me = mc_self()
        cdef mc_waiting waiting
        cdef mc_outcome outcome
        if mc_lock_try(lock, me) or mc_lock_short_spin(lock, me):
            return True
        mc_waiting_begin(&waiting, deadline_ns if deadline_ns else mc_now_ns() + PATIENCE_NS)
        try:
            while True:
                with nogil:
                    outcome = mc_lock_wait(lock, me, &waiting, &self.handle.spinner)
                if outcome != MC_AGAIN:
                    return outcome != MC_TIMED_OUT
                PyErr_CheckSignals()
        finally:
            mc_lock_left(lock, &waiting)

    cdef bint sleep(self, mc_word *version, mc_queue_waits *waits, uint32_t seen, mc_waiting *waiting) except -1:
        """False when the deadline has passed."""
        cdef mc_outcome outcome
        with nogil:
            outcome = mc_queue_sleep(version, waits, seen, waiting, &self.handle.spinner)
        if outcome == MC_TIMED_OUT:
            return False
        if outcome == MC_AGAIN:
            PyErr_CheckSignals()
        return True

    # Writing

    cdef int require(self) except -1:
        cdef mc_queue *s = self.memory()
        if s.allocated > self.checked_blocks and s.free_count < 128:  # it is about to grow
            self._require(CHECKED_BLOCKS * MC_QUEUE_BLOCK)
            self.checked_blocks = s.allocated + CHECKED_BLOCKS
        return 0

    cdef int linger(self, tuple record) except -1:
        """Waits a moment for used memory, where readers are at work (`c/linger.h`)."""
        cdef mc_queue *s = self.memory()
        cdef uint64_t size = 0, got
        cdef bint found
        if <int>record[0] == CODED:
            for piece in record[1]:
                size += len(piece)
        else:
            size = PyBytes_GET_SIZE(record[1])
        if size < LARGE or mc_queue_may_grow(s, size):
            return 0
        got = mc_queue_look(&s.head).count
        if got == self.lingered:  # nobody has read since that was tried in vain
            return 0
        with nogil:
            found = mc_queue_linger(&self.handle, size)
        if not found:
            self.lingered = mc_queue_look(&s.head).count
        return 0

    cdef int copy_in(self, mc_queue_cursor *cursor, object piece) except -1:
        cdef Py_buffer view
        cdef int error
        PyObject_GetBuffer(piece, &view, PyBUF_SIMPLE)
        try:
            if view.len >= LARGE:
                with nogil:
                    error = mc_queue_write(&self.handle, cursor, view.buf, view.len)
            else:
                error = mc_queue_write(&self.handle, cursor, view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        if error:
            raise system_error(error, "the queue cannot grow")
        return 0

    cdef int write(self, mc_queue_cursor *cursor, tuple record) except -1:
        cdef int kind = record[0]
        cdef int error
        cdef uint64_t size, count
        cdef list pieces
        if kind != CODED:
            error = mc_queue_begin_record(&self.handle, cursor, kind, PyBytes_GET_SIZE(record[1]))
            if error:
                raise system_error(error, "the queue cannot grow")
            return self.copy_in(cursor, record[1])
        pieces = record[1]
        count = len(pieces)
        error = mc_queue_begin_record(&self.handle, cursor, CODED, count)
        for piece in pieces:
            size = len(piece)
            if not error:
                error = mc_queue_write(&self.handle, cursor, &size, sizeof(size))
        if error:
            raise system_error(error, "the queue cannot grow")
        for piece in pieces:
            self.copy_in(cursor, piece)
        return 0

    cdef Py_ssize_t put_records(self, list records, Py_ssize_t first, int64_t deadline_ns) except -1:
        """Puts as many as there is room for, one at least; how many. 0 when the time is up."""
        cdef mc_queue *s = self.memory()
        cdef mc_queue_place place
        cdef mc_queue_cursor cursor
        cdef mc_waiting waiting
        cdef uint32_t seen
        cdef Py_ssize_t many = len(records) - first, done
        cdef uint64_t room
        self.require()
        if deadline_ns:
            self.linger(<tuple>records[first])
        mc_waiting_begin(&waiting, deadline_ns)
        try:
            while True:
                seen = mc_queue_load32(&s.head.version)
                if mc_queue_load32(&s.closed):
                    raise self.shut_down_error
                if not mc_queue_has_room(s):
                    if deadline_ns == 0 or not self.sleep(&s.head.version, &s.room, seen, &waiting):
                        return 0
                    continue
                if not self.lock(&s.writers, deadline_ns):
                    return 0
                try:
                    if mc_queue_load32(&s.closed):
                        raise self.shut_down_error
                    place = mc_queue_look(&s.tail)
                    if s.most:
                        room = s.most - (place.count - mc_queue_look(&s.head).count)
                        if room == 0:
                            continue
                        if <uint64_t>many > room:
                            many = room
                    cursor = mc_queue_cursor_at(&self.handle, place)
                    for done in range(many):
                        self.write(&cursor, records[first + done])
                    mc_queue_publish(&s.tail, cursor, place.count + many)
                finally:
                    mc_lock_release(&s.writers)
                mc_queue_wake(&s.items, many if many < EVERYBODY else EVERYBODY)
                return many
        finally:
            if waiting.slept:
                mc_queue_left(&s.room, &waiting)
                if mc_queue_has_room(s):
                    mc_queue_wake(&s.room, 1)

    def put(self, obj, block=True, timeout=None):
        """Put an item into the queue.

        Args:
            obj: The item. It is pickled here and now.
            block: Wait for room in a bounded queue.
            timeout: Seconds to wait at most, for everything; None is for ever.

        Raises:
            Full: There was no room in time.
            TaskPicklingError: The item cannot be pickled; the message says which part.
            ShutDown: The queue was shut down.
            ValueError: This object was closed.
            OSError: There is no memory for the item.
        """
        if self.closed:
            raise ValueError(f"Queue {self!r} is closed")
        cdef int64_t deadline_ns = deadline_of(block, timeout)
        if self.put_records([self.encode(obj)], 0, deadline_ns) == 0:
            raise Full

    def put_nowait(self, obj):
        """`put(obj, block=False)`."""
        return self.put(obj, False)

    def put_many(self, items, block=True, timeout=None):
        """Put several items, in order; one lock and one wake-up for all that there is room for.

        Args:
            items: An iterable; all of it is pickled before anything is put.
            block: Wait for room.
            timeout: Seconds to wait at most, for everything; None is for ever.

        Returns:
            How many were put; less than all when the time was up.
        """
        cdef list records = []
        cdef Py_ssize_t done = 0, more
        cdef int64_t deadline_ns = deadline_of(block, timeout)
        if self.closed:
            raise ValueError(f"Queue {self!r} is closed")
        for item in items:
            records.append(self.encode(item))
        while done < len(records):
            more = self.put_records(records, done, deadline_ns)
            if more == 0:
                break
            done += more
        return done

    # Reading

    cdef object copy_out(self, mc_queue_cursor *cursor, uint64_t size, bint writable):
        cdef int error
        cdef char *into
        if writable:
            data = PyByteArray_FromStringAndSize(NULL, size)
            into = PyByteArray_AS_STRING(data)
        else:
            data = PyBytes_FromStringAndSize(NULL, size)
            into = PyBytes_AS_STRING(data)
        if size >= LARGE:
            with nogil:
                error = mc_queue_read(&self.handle, cursor, into, size)
        else:
            error = mc_queue_read(&self.handle, cursor, into, size)
        if error:
            raise system_error(error, "the queue cannot be read")
        return data

    cdef tuple read(self, mc_queue_cursor *cursor):
        cdef uint64_t kind, size, index
        cdef list sizes
        cdef int error = mc_queue_next_record(&self.handle, cursor, &kind, &size)
        if error:
            raise system_error(error, "the queue cannot be read")
        if kind != CODED:
            return kind, self.copy_out(cursor, size, False)
        sizes = []
        for index in range(size):
            error = mc_queue_read(&self.handle, cursor, &kind, sizeof(kind))
            if error:
                raise system_error(error, "the queue cannot be read")
            sizes.append(kind)
        data = self.copy_out(cursor, sizes[0], False)
        return CODED, data, [self.copy_out(cursor, each, True) for each in sizes[1:]]

    cdef list get_records(self, Py_ssize_t most, int64_t deadline_ns):
        """One record at least, as many as there are up to `most`; None when the time is up."""
        cdef mc_queue *s = self.memory()
        cdef mc_queue_place head, tail
        cdef mc_queue_cursor cursor
        cdef mc_waiting waiting
        cdef uint32_t seen, first
        cdef uint64_t many, index
        cdef list records
        mc_waiting_begin(&waiting, deadline_ns)
        try:
            while True:
                seen = mc_queue_load32(&s.tail.version)
                if not mc_queue_has_items(s):
                    if mc_queue_load32(&s.closed):
                        raise self.shut_down_error
                    if deadline_ns == 0:
                        return None
                    if s.meets:
                        mc_queue_announce(s)
                    if not self.sleep(&s.tail.version, &s.items, seen, &waiting):
                        return None
                    continue
                if not self.lock(&s.readers, deadline_ns):
                    return None
                try:
                    head = mc_queue_look(&s.head)
                    tail = mc_queue_look(&s.tail)
                    many = tail.count - head.count
                    if many == 0:
                        continue
                    if many > <uint64_t>most:
                        many = most
                    cursor = mc_queue_cursor_at(&self.handle, head)
                    records = []
                    for index in range(many):
                        records.append(self.read(&cursor))
                    if s.meets and not mc_offer_decide(s, head.count, MC_OFFER_TAKEN):
                        records = None  # withdrawn; it is passed by
                    mc_queue_publish(&s.head, cursor, head.count + many)
                    if s.work.kept:
                        mc_queue_hold(s, mc_self(), many)
                    mc_queue_give_back(&self.handle, head.block, cursor.block)
                finally:
                    mc_lock_release(&s.readers)
                if s.most or cursor.block != head.block:
                    many = EVERYBODY if s.meets or many > <uint64_t>EVERYBODY else many
                    mc_queue_wake(&s.room, many)
                if records is not None:
                    return records
        finally:
            if waiting.slept:
                mc_queue_left(&s.items, &waiting)
                if mc_queue_has_items(s):
                    mc_queue_wake(&s.items, 1)

    def get(self, block=True, timeout=None):
        """Take the item that was put first.

        Args:
            block: Wait for an item.
            timeout: Seconds to wait at most, for everything; None is for ever.

        Raises:
            Empty: There was no item in time.
            ShutDown: The queue is empty, and was shut down.
            ValueError: This object was closed.
        """
        if self.closed:
            raise ValueError(f"Queue {self!r} is closed")
        cdef list records = self.get_records(1, deadline_of(block, timeout))
        if records is None:
            raise Empty
        return self.decode(<tuple>records[0])

    def get_nowait(self):
        """`get(block=False)`."""
        return self.get(False)

    def get_many(self, max=None, timeout=None):
        """Take what is there: waits for one item, and takes up to `max` that have arrived.

        Args:
            max: Items at most; None is all that are there.
            timeout: Seconds to wait for the first at most; None is for ever.

        Returns:
            A list, with one item at least.

        Raises:
            Empty: There was no item in time.
            ShutDown: The queue is empty, and was shut down.
        """
        cdef Py_ssize_t most = 0x7fffffffffffffff if max is None else max
        if self.closed:
            raise ValueError(f"Queue {self!r} is closed")
        if most < 1:
            raise ValueError("max must be at least 1")
        cdef list records = self.get_records(most, deadline_of(True, timeout))
        if records is None:
            raise Empty
        return [self.decode(<tuple>record) for record in records]

    # The rest

    def qsize(self):
        """The number of items, this moment."""
        return mc_queue_size(self.memory())

    def empty(self):
        """Whether there is no item, this moment."""
        return not mc_queue_has_items(self.memory())

    def full(self):
        """Whether there is no room, this moment."""
        return not mc_queue_has_room(self.memory())

    @property
    def _maxsize(self):
        return self.memory().most

    @property
    def _fd(self):
        return self.handle.fd

    def _memory_bytes(self):
        """Bytes that the queue's file has had, for all processes together."""
        return self.memory().allocated * <uint64_t>MC_QUEUE_BLOCK

    def _close(self):
        self.closed = True

    def shutdown(self, immediate=False):
        """No more items: `put` raises ShutDown at once, `get` when the queue is empty. For all processes.

        Args:
            immediate: Discard what is in the queue.
        """
        cdef mc_queue *s = self.memory()
        cdef mc_queue_place head, tail
        cdef mc_queue_cursor cursor
        mc_queue_store32(&s.closed, 1)
        self.lock(&s.writers, MC_NEVER)  # whoever was putting has put
        mc_queue_touch(&s.tail)
        mc_lock_release(&s.writers)
        self.lock(&s.readers, MC_NEVER)
        try:
            mc_queue_touch(&s.head)
            if immediate:
                head = mc_queue_look(&s.head)
                tail = mc_queue_look(&s.tail)
                cursor = mc_queue_cursor_at(&self.handle, tail)
                mc_queue_publish(&s.head, cursor, tail.count)
                mc_queue_forget_work(s)
                mc_queue_give_back(&self.handle, head.block, cursor.block)
        finally:
            mc_lock_release(&s.readers)
        mc_queue_wake_all(&s.work.waits)
        mc_queue_wake_all(&s.items)
        mc_queue_wake_all(&s.room)

    # Tasks

    def _task_done(self):
        """One item that was taken has been dealt with; ValueError where there is none."""
        cdef mc_queue *s = self.memory()
        cdef bint right
        self.lock(&s.readers, MC_NEVER)
        right = mc_queue_done(s, mc_self())
        mc_lock_release(&s.readers)
        if not right:
            raise ValueError("task_done() called too many times")
        if mc_queue_all_done(s):
            mc_queue_wake(&s.work.waits, EVERYBODY)

    def _join(self):
        """Wait until every item that was put has been dealt with, or is lost; how many were lost since the last call."""
        cdef mc_queue *s = self.memory()
        cdef mc_waiting waiting
        cdef uint32_t seen
        cdef uint64_t lost
        mc_waiting_begin(&waiting, MC_NEVER)
        while True:
            seen = mc_queue_load32(&s.work.changed)
            if mc_queue_all_done(s):
                lost = mc_queue_lost(s)
                many = lost - self.told if lost > self.told else 0
                self.told = lost
                return many
            # Also where it did not sleep: a queue that is never still is looked at as well.
            self.sleep(&s.work.changed, &s.work.waits, seen, &waiting)
            if not mc_queue_all_done(s):
                self.lock(&s.readers, MC_NEVER)
                mc_queue_count_back(s)
                mc_lock_release(&s.readers)

    # Watching, for `manycore._memory.bells`: side 0 is that of `get`, 1 that of `put`

    def _ready(self, int side):
        """Whether a call on that side would not have to wait."""
        cdef mc_queue *s = self.memory()
        if side:
            return mc_queue_has_room(s) or mc_queue_load32(&s.closed) != 0
        return mc_queue_has_items(s) or mc_queue_load32(&s.closed) != 0

    def _watch(self, int side, int fd, uint64_t inode):
        """A slot for the bell that is this pipe; -1 when there is none."""
        cdef mc_queue *s = self.memory()
        return mc_bells_enter(&s.room.bells if side else &s.items.bells, mc_self(), fd, inode)

    def _arm(self, int side, int slot):
        """Have the bell rung at the next change."""
        cdef mc_queue *s = self.memory()
        mc_queue_arm(&s.room if side else &s.items, slot)

    def _unwatch(self, int side, int slot):
        """Give the slot back."""
        cdef mc_queue *s = self.memory()
        mc_bells_leave(&s.room.bells if side else &s.items.bells, mc_self(), slot)

    # Items that are pickled once and put when there is room

    def _encoded(self, obj):
        """What `_put_encoded` takes."""
        if self.closed:
            raise ValueError(f"Queue {self!r} is closed")
        return [self.encode(obj)]

    def _put_encoded(self, list records, timeout=0):
        """Put it; whether there was room in time."""
        return self.put_records(records, 0, deadline_of(True, timeout)) != 0

    @property
    def _is_shut(self):
        """Whether nothing is put any more."""
        return mc_queue_load32(&self.memory().closed) != 0
