# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, binding=False, embedsignature=True, embedsignature.format=clinic
"""Atomic numbers, the lock of readers and writers, and objects behind a lock.

The algorithms are `c/atomic.h` and `c/rwlock.h`; this file checks arguments, gives up the interpreter while
it waits, lets signals through, and turns outcomes into results and exceptions. `Guarded` and `Field` are
the fast path of `Value` and `Array`: attribute access under a lock without a Python frame.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t, uint64_t

from manycore._native.sync cimport (
    MC_AGAIN,
    MC_NEVER,
    MC_TAKEN,
    MC_TAKEN_OVER,
    MC_TIMED_OUT,
    Lock,
    RLock,
    Shared,
    between,
    deadline_of,
    mc_lock,
    mc_lock_is_mine,
    mc_lock_left,
    mc_lock_try,
    mc_lock_wait,
    mc_now_ns,
    mc_outcome,
    mc_owner_pid,
    mc_rlock_release,
    mc_self,
    mc_spinner,
    mc_waiting,
    mc_waiting_begin,
    owner_died,
)

cdef extern from "atomic.h" nogil:
    ctypedef struct mc_atomic:
        pass
    void mc_atomic_init(mc_atomic *a, uint64_t bits)
    bint mc_atomic_valid(const mc_atomic *a)
    uint64_t mc_atomic_load(mc_atomic *a)
    uint64_t mc_atomic_exchange(mc_atomic *a, uint64_t bits)
    bint mc_atomic_compare_exchange(mc_atomic *a, uint64_t *expected, uint64_t desired)
    int64_t mc_atomic_add(mc_atomic *a, int64_t amount)
    double mc_atomic_add_double(mc_atomic *a, double amount)
    int64_t mc_atomic_extreme(mc_atomic *a, int64_t value, int sign)
    double mc_atomic_extreme_double(mc_atomic *a, double value, int sign)
    double mc_bits_to_double(uint64_t bits)
    uint64_t mc_double_to_bits(double value)
    mc_outcome mc_atomic_wait(mc_atomic *a, uint64_t bits, mc_waiting *w, mc_spinner *spinner)

cdef extern from "rwlock.h" nogil:
    ctypedef struct mc_rwlock:
        mc_lock writer
    void mc_rw_init(mc_rwlock *l)
    bint mc_rw_valid(const mc_rwlock *l)
    bint mc_rw_try_read(mc_rwlock *l, uint64_t self)
    bint mc_rw_has_reader(mc_rwlock *l)
    bint mc_rw_release_read(mc_rwlock *l, uint64_t self)
    mc_outcome mc_rw_wait_read(mc_rwlock *l, uint64_t self, mc_waiting *w, mc_spinner *spinner)
    void mc_rw_read_left(mc_rwlock *l, mc_waiting *w)
    mc_outcome mc_rw_wait_drain(mc_rwlock *l, mc_waiting *w, mc_spinner *spinner)
    void mc_rw_drop_dead_readers(mc_rwlock *l)
    bint mc_rw_release_write(mc_rwlock *l)
    uint32_t mc_rw_readers(mc_rwlock *l)
    void mc_rw_bury(mc_rwlock *l, uint32_t pid)

cdef extern from *:
    """
    static inline uint64_t mc_rw_writer(mc_rwlock *l) { return atomic_load(&l->writer.state); }
    static inline uint32_t mc_rw_writer_tid(mc_rwlock *l) { return atomic_load(&l->writer.tid); }
    static inline int64_t mc_rw_writer_since(mc_rwlock *l) { return atomic_load(&l->writer.since_ns); }
    """
    uint64_t mc_rw_writer(mc_rwlock *l) nogil
    uint32_t mc_rw_writer_tid(mc_rwlock *l) nogil
    int64_t mc_rw_writer_since(mc_rwlock *l) nogil

cdef extern from "owner.h" nogil:
    bint mc_owner_is_dead(uint64_t owner)

cdef extern from "Python.h":
    bint PyLong_Check(object value)
    object PyNumber_Index(object value)
    unsigned long long PyLong_AsUnsignedLongLongMask(object value) except? 0xffffffffffffffff

ATOMIC_BYTES = sizeof(mc_atomic)
RWLOCK_BYTES = sizeof(mc_rwlock)


cdef object not_made(object self):
    return RuntimeError(f"{type(self).__name__}.__init__ was not called")


cdef inline int64_t integer(object value) except? -1:
    return value if PyLong_Check(value) else PyNumber_Index(value)  # a float is not rounded, but refused


@cython.no_gc_clear
cdef class Atomic(Shared):
    """A number in shared memory that needs no lock."""

    cdef mc_atomic *atomic
    cdef readonly type kind  # int, float or bool

    def _make(self, cell, value):
        """Begin a new number in the zeroed cell."""
        cdef mc_atomic *atomic = <mc_atomic *>self.attach(cell, sizeof(mc_atomic))
        self.kind = bool if isinstance(value, bool) else float if isinstance(value, float) else int
        mc_atomic_init(atomic, self.to_bits(value))
        self.atomic = atomic

    def _join(self, cell, type kind):
        """Use the number that is in the cell."""
        cdef mc_atomic *atomic = <mc_atomic *>self.attach(cell, sizeof(mc_atomic))
        if not mc_atomic_valid(atomic):
            raise ValueError("there is no atomic in this memory, or one of another version of manycore")
        self.kind = kind
        self.atomic = atomic

    cdef uint64_t to_bits(self, object value) except? 0xdeadbeefdeadbeef:
        if self.kind is int:
            return <uint64_t>integer(value)
        if self.kind is float:
            return mc_double_to_bits(value)
        return 1 if value else 0

    cdef object from_bits(self, uint64_t bits):
        if self.kind is int:
            return <int64_t>bits
        if self.kind is float:
            return mc_bits_to_double(bits)
        return bits != 0

    cdef int check(self, bint number) except -1:
        if self.atomic is NULL:
            raise not_made(self)
        if number and self.kind is bool:
            raise TypeError("an atomic boolean has no arithmetic")
        return 0

    def load(self):
        """The value, this moment."""
        self.check(False)
        return self.from_bits(mc_atomic_load(self.atomic))

    def store(self, value):
        """Replace the value."""
        self.check(False)
        mc_atomic_exchange(self.atomic, self.to_bits(value))

    def exchange(self, value):
        """Replace the value, and return the one before."""
        self.check(False)
        return self.from_bits(mc_atomic_exchange(self.atomic, self.to_bits(value)))

    def compare_exchange(self, expected, desired):
        """Replace the value by `desired` if it is `expected`; returns whether it was."""
        self.check(False)
        cdef uint64_t seen = self.to_bits(expected)
        return mc_atomic_compare_exchange(self.atomic, &seen, self.to_bits(desired))

    def add(self, amount=1):
        """Add to the value, and return the sum. Integers have 64 bits and wrap."""
        cdef int64_t number
        if self.kind is int and self.atomic is not NULL:
            number = integer(amount)
            return <int64_t>(<uint64_t>mc_atomic_add(self.atomic, number) + <uint64_t>number)
        self.check(True)
        return mc_atomic_add_double(self.atomic, amount) + <double>amount

    def sub(self, amount=1):
        """Subtract from the value, and return the difference. Integers have 64 bits and wrap."""
        return self.add(-amount)

    def max(self, value):
        """Make the value at least this, and return what it is then."""
        self.check(True)
        if self.kind is float:
            return max(mc_atomic_extreme_double(self.atomic, value, 1), <double>value)
        return max(mc_atomic_extreme(self.atomic, integer(value), 1), value)

    def min(self, value):
        """Make the value at most this, and return what it is then."""
        self.check(True)
        if self.kind is float:
            return min(mc_atomic_extreme_double(self.atomic, value, -1), <double>value)
        return min(mc_atomic_extreme(self.atomic, integer(value), -1), value)

    def wait(self, while_, timeout=None):
        """Wait as long as the value is `while_`.

        Args:
            while_: The value not to be waited for.
            timeout: Seconds to wait at most; None is for ever.

        Returns:
            Whether the value was seen to be another before the timeout.
        """
        cdef mc_waiting waiting
        cdef mc_outcome outcome
        cdef uint64_t bits
        self.check(False)
        bits = self.to_bits(while_)
        if mc_atomic_load(self.atomic) != bits:
            return True
        mc_waiting_begin(&waiting, deadline_of(timeout))
        while True:
            with nogil:
                outcome = mc_atomic_wait(self.atomic, bits, &waiting, &self.spinner)
            if outcome != MC_AGAIN:
                return outcome == MC_TAKEN
            PyErr_CheckSignals()


@cython.no_gc_clear
cdef class ReadWriteLock(Shared):
    """Many readers, or one writer."""

    cdef mc_rwlock *lock
    cdef bint tells

    def _make(self, cell, bint tells):
        """Begin a new lock in the zeroed cell. `tells`: raise OwnerDied after a writer's death."""
        cdef mc_rwlock *lock = <mc_rwlock *>self.attach(cell, sizeof(mc_rwlock))
        mc_rw_init(lock)
        self.tells = tells
        self.lock = lock

    def _join(self, cell, bint tells):
        """Use the lock that is in the cell."""
        cdef mc_rwlock *lock = <mc_rwlock *>self.attach(cell, sizeof(mc_rwlock))
        if not mc_rw_valid(lock):
            raise ValueError("there is no lock in this memory, or one of another version of manycore")
        self.tells = tells
        self.lock = lock

    def acquire_read(self, timeout=None):
        """Take the lock for reading.

        Args:
            timeout: Seconds to wait at most; None is for ever.

        Returns:
            Whether it was taken.

        Raises:
            OwnerDied: It was taken, and the last writer died while it wrote.
        """
        cdef mc_waiting waiting
        cdef mc_outcome outcome = MC_AGAIN
        cdef uint64_t me = mc_self()
        if self.lock is NULL:
            raise not_made(self)
        if mc_rw_try_read(self.lock, me):
            return True
        mc_waiting_begin(&waiting, deadline_of(timeout))
        try:
            while True:
                with nogil:
                    outcome = mc_rw_wait_read(self.lock, me, &waiting, &self.spinner)
                if outcome != MC_AGAIN:
                    break
                between(self.cell, &waiting)
        finally:
            mc_rw_read_left(self.lock, &waiting)
        if outcome == MC_TAKEN_OVER and self.tells:
            raise owner_died(waiting.dead, f"this {type(self).__name__} for writing")
        return outcome != MC_TIMED_OUT

    def release_read(self):
        """Give back what `acquire_read` took in this process.

        Raises:
            ValueError: This process does not read.
        """
        if self.lock is NULL or not mc_rw_release_read(self.lock, mc_self()):
            raise ValueError("this process does not hold the lock for reading")

    def acquire_write(self, timeout=None):
        """Take the lock for writing. Readers that come from now on wait; those inside are waited for.

        Args:
            timeout: Seconds to wait at most; None is for ever.

        Returns:
            Whether it was taken.

        Raises:
            OwnerDied: It was taken, and the last writer died while it wrote.
        """
        cdef mc_waiting waiting
        cdef mc_outcome outcome = MC_AGAIN
        cdef uint64_t me = mc_self()
        cdef uint64_t dead = 0
        if self.lock is NULL:
            raise not_made(self)
        mc_waiting_begin(&waiting, deadline_of(timeout))
        if not mc_lock_try(&self.lock.writer, me):
            try:
                while True:
                    with nogil:
                        outcome = mc_lock_wait(&self.lock.writer, me, &waiting, &self.spinner)
                    if outcome != MC_AGAIN:
                        break
                    between(self.cell, &waiting)
            finally:
                mc_lock_left(&self.lock.writer, &waiting)
            if outcome == MC_TIMED_OUT:
                return False
            dead = waiting.dead
        outcome = MC_AGAIN
        try:
            while outcome == MC_AGAIN:
                with nogil:
                    outcome = mc_rw_wait_drain(self.lock, &waiting, &self.spinner)
                if outcome == MC_AGAIN:
                    PyErr_CheckSignals()
        finally:
            if outcome != MC_TAKEN:
                mc_rw_release_write(self.lock)
        if outcome != MC_TAKEN:
            return False
        if dead and self.tells:
            raise owner_died(dead, f"this {type(self).__name__} for writing")
        return True

    def release_write(self):
        """Give back what `acquire_write` took.

        Raises:
            ValueError: Nobody writes.
        """
        if self.lock is NULL or not mc_rw_release_write(self.lock):
            raise ValueError("nobody holds the lock for writing")

    cdef int bury(self, uint32_t pid) except -1:
        mc_rw_bury(self.lock, pid)
        return 0

    def _readers(self):
        mc_rw_drop_dead_readers(self.lock)
        return mc_rw_readers(self.lock)

    def _owner(self):
        cdef uint64_t state = mc_rw_writer(self.lock)
        return mc_owner_pid(state), mc_rw_writer_tid(self.lock), mc_rw_writer_since(self.lock), mc_owner_is_dead(state)

    @property
    def _tells(self):
        return self.tells


cdef class Guarded:
    """An object and the lock that guards it."""

    cdef object __weakref__
    cdef object obj
    cdef void *data  # of a plain number in shared memory, that `Field` reads and writes itself
    cdef char code   # which kind of number, as in `struct`
    cdef readonly object _lock
    cdef readonly object acquire
    cdef readonly object release
    cdef RLock ours

    def _guard(self, obj, lock, size_t address=0, str code="\0"):
        """Begin. `address` and `code`: where and what the object is, if it is a number that stays there."""
        self.obj = obj
        self.data = <void *>address
        self.code = <char>ord(code)
        self._lock = lock
        self.acquire = lock.acquire
        self.release = lock.release
        self.ours = lock if isinstance(lock, RLock) else None

    cdef int enter(self) except -1:
        cdef uint64_t me
        if self.ours is None:
            if self._lock is None:
                raise not_made(self)
            self._lock.__enter__()
            return 0
        me = mc_self()
        if mc_lock_is_mine(self.ours.lock, me):  # first: who changes a value most often holds its lock
            self.ours.lock.depth += 1
        elif mc_lock_try(self.ours.lock, me):
            self.ours.lock.depth = 1
        else:
            self.ours.take_or_release()
            self.ours.lock.depth = 1
        return 0

    cdef int leave(self) except -1:
        if self.ours is None:
            self._lock.__exit__(None, None, None)
        elif self.ours.notifier is not None:
            self.ours.give()
        elif not mc_rlock_release(self.ours.lock, mc_self()):
            raise AssertionError("attempt to release recursive lock not owned by thread")
        return 0

    def __enter__(self):
        self.enter()
        return True

    def __exit__(self, exc_type, exc, traceback):
        self.leave()

    @property
    def _obj(self):
        return self.obj

    @_obj.setter
    def _obj(self, obj):
        self.obj = obj
        self.data = NULL

    cdef object read(self):
        """The number, under the lock."""
        if self.code == b"l":
            return (<long *>self.data)[0]
        if self.code == b"i":
            return (<int *>self.data)[0]
        if self.code == b"d":
            return (<double *>self.data)[0]
        if self.code == b"q":
            return (<long long *>self.data)[0]
        if self.code == b"L":
            return (<unsigned long *>self.data)[0]
        return (<unsigned int *>self.data)[0]

    cdef bint write(self, object value) except -1:
        """Write the number, under the lock; False for what ctypes is to convert or refuse. Integers wrap, as there."""
        cdef unsigned long long bits
        if self.code == b"d":
            if type(value) is not float:
                return False
            (<double *>self.data)[0] = value
            return True
        if type(value) is not int:
            return False
        bits = PyLong_AsUnsignedLongLongMask(value)
        if self.code == b"i" or self.code == b"I":
            (<unsigned int *>self.data)[0] = <unsigned int>bits
        elif self.code == b"l" or self.code == b"L":
            (<unsigned long *>self.data)[0] = <unsigned long>bits
        else:
            (<unsigned long long *>self.data)[0] = bits
        return True

    def get_obj(self):
        """The object itself, without the lock."""
        return self.obj

    def get_lock(self):
        """The lock."""
        return self._lock


cdef class Field:
    """An attribute of the object behind a `Guarded`, read and written under the lock."""

    cdef readonly str name

    def __init__(self, name):
        self.name = name

    def __get__(self, obj, owner):
        cdef Guarded guarded
        if obj is None:
            return self
        guarded = obj
        if guarded.data is not NULL and guarded.ours is not None and mc_lock_is_mine(guarded.ours.lock, mc_self()):
            return guarded.read()
        guarded.enter()
        try:
            return getattr(guarded.obj, self.name) if guarded.data is NULL else guarded.read()
        finally:
            guarded.leave()

    def __set__(self, obj, value):
        cdef Guarded guarded = obj
        if guarded.data is not NULL and guarded.ours is not None and mc_lock_is_mine(guarded.ours.lock, mc_self()):
            if guarded.write(value):
                return
        guarded.enter()
        try:
            if guarded.data is NULL or not guarded.write(value):
                setattr(guarded.obj, self.name, value)
        finally:
            guarded.leave()
